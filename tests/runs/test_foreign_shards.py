"""`fasttrain pretrain` straight from WebDataset's tars, killed and resumed on another number of
processes: the images come in the order, and with the losses, of a run that nothing happened to."""

from __future__ import annotations

import hashlib
import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fasttrain.checkpoints import checkpoint
from fasttrain.data import Batch, ImageStream
from fasttrain_data.indexing import run_indexing
from tests.faults.child import command, free_port
from tests.faults.lab import KILLED, lines
from tests.foreign import write_shards

IMAGES, BATCH = 96, 8


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """40 photographs of four sizes in ten classes."""
    folder = write_shards(tmp_path / "tars", images=40, per_shard=7, classes=10)
    run_indexing(str(folder), workers=1)
    return folder


def train(run: Path, data: str, ranks: int, *overrides: str, kill_at: int = 0) -> list[int]:
    """Run the command on so many processes; all are killed at their `kill_at`-th batch. What each
    ended with. Each image that was read leaves a line in `RUN.order`."""
    port = free_port()
    arguments = ["pretrain", "digits-edm", f"run={run}", *overrides]
    arguments += [f"data.path={data}", f"batch={BATCH}", f"images={IMAGES}"]
    arguments += ["network.model_channels=16", "network.num_blocks=1", "report_every=8"]
    arguments += ["precision=float32"]
    arguments += ["checkpoint.every=24", "sample.count=4", "data.streams=4"]
    arguments += ["evaluate={samples: 8, components: null}"]
    children = [
        command(
            run.with_name(f"{run.name}-{rank}.log"),
            *arguments,
            rank=rank,
            ranks=ranks,
            port=port,
            before=lambda: write_down(run.with_suffix(".order"), kill_at),
        )
        for rank in range(ranks)
    ]
    statuses = [child.wait() for child in children]
    assert set(statuses) in ({0}, {KILLED}), "\n".join(child.said()[-3000:] for child in children)
    return statuses


def write_down(path: Path, kill_at: int) -> None:
    """From now on each image of a training batch is written down by its index in the run."""
    following, count = ImageStream.__next__, 0

    def noted(self: ImageStream) -> Batch:
        nonlocal count
        batch = following(self)
        if self.batch != BATCH:  # of the evaluation
            return batch
        count += 1
        if count == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        assert batch.class_labels is not None
        rows = zip(batch.index.tolist(), batch.images, batch.class_labels.argmax(1), strict=True)
        with path.open("a") as file:
            for index, image, label in rows:
                pixels = hashlib.sha256(image.numpy().tobytes()).hexdigest()
                file.write(json.dumps([index, pixels, int(label)]) + "\n")
        return batch

    ImageStream.__next__ = noted  # type: ignore[method-assign]


def order(run: Path) -> dict[int, list[Any]]:
    """Pixels and label of each image of the run, which must be the same each time it is read."""
    found: dict[int, list[Any]] = {}
    for index, *what in map(json.loads, run.with_suffix(".order").read_text().splitlines()):
        assert found.setdefault(index, what) == what
    return found


def ends(run: Path) -> Iterator[Any]:
    end = checkpoint.find(run / "checkpoints")
    yield end.images
    yield end.state["data"]
    yield {key: value.numpy().tobytes() for key, value in end.tensors("ema").items()}


@pytest.mark.slow
def test_killed_and_resumed_on_another_number_of_processes(tars: Path, tmp_path: Path) -> None:
    unbroken, broken, moved = (tmp_path / name for name in ("unbroken", "broken", "moved"))
    data = str(tars)
    train(unbroken, data, 1)
    assert train(broken, data, 1, kill_at=8) == [KILLED]
    train(broken, f"{tars}/set-{{000000..000005}}.tar", 1, f"data.index={tars}/fasttrain-index")
    assert order(broken) == order(unbroken)
    assert lines(broken) == lines(unbroken)  # bit by bit
    assert list(ends(broken)) == list(ends(unbroken))

    assert train(moved, data, 2, kill_at=8) == [KILLED, KILLED]
    train(moved, data, 1)
    assert order(moved) == order(unbroken)
    assert sorted(order(moved)) == [*range(IMAGES)]
    assert list(ends(moved))[:2] == list(ends(unbroken))[:2]
    for line, expected in zip(lines(moved), lines(unbroken), strict=True):
        # Two processes add in another order than one.
        assert line["loss/denoising"] == pytest.approx(expected["loss/denoising"], rel=1e-5)
