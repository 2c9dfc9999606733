"""Streams with reader processes: options, the processes, all there is to know of their batches."""

from __future__ import annotations

from itertools import islice
from pathlib import Path
from typing import Any

from fasttrain.data import ImageStream
from fasttrain.data.readers import Workers
from tests.data.batches import values

OPTIONS: dict[str, Any] = {"batch": 12, "streams": 4, "seed": 9, "window": 5}


def pids(stream: ImageStream) -> list[int]:
    assert isinstance(stream._readers, Workers)
    return [process.pid for process in stream._readers.processes]


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def told(stream: ImageStream, count: int) -> list[Any]:
    """All that there is to know of the next batches."""
    found = []
    for batch in islice(stream, count):
        assert batch.class_labels is not None
        labels = batch.class_labels.argmax(1).tolist()
        found.append((values(batch), labels, batch.index.tolist(), stream.state_dict()))
    return found
