"""What batches hold, over all ranks, and the cursor of all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from fasttrain.data import Batch, ImageStream

IMAGES = 53


def values(batch: Batch) -> list[int]:
    """The identity of each image of a batch."""
    pixels = batch.images
    assert pixels.dtype == torch.uint8
    assert (pixels == pixels[:, :1, :1, :1]).all()
    return [int(value) for value in pixels[:, 0, 0, 0]]


def global_batches(path: Path, count: int, world_size: int = 1, **options: Any) -> list[list[int]]:
    """Batches over all ranks, put together in rank order."""
    ranks = [
        ImageStream(path, rank=rank, world_size=world_size, **options) for rank in range(world_size)
    ]
    return [[value for rank in ranks for value in values(next(rank))] for _ in range(count)]


def merged(streams: list[ImageStream]) -> dict[str, Any]:
    """What a checkpoint holds: the cursors of all ranks, through JSON."""
    states = [stream.state_dict() for stream in streams]
    cursors = {key: value for state in states for key, value in state["streams"].items()}
    return json.loads(json.dumps({**states[0], "streams": cursors}))  # type: ignore[no-any-return]
