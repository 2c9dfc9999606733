"""What tests see of runs that the pretend GPUs made."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from fasttrain import checkpoint
from fasttrain.metrics import TIMES, read_stats
from tests.on_pretend_gpu.trainings import IMAGES

__all__ = ["assert_complete", "assert_same", "half_done"]


def assert_complete(run: Path, *names: str) -> None:
    """The run ended: a line an iteration with finite numbers of these names, a sample grid, a whole
    checkpoint."""
    lines = read_stats(run)
    assert [line["images"] for line in lines] == [IMAGES // 2, IMAGES]
    missing = [name for name in names if name not in lines[-1]]
    assert not missing, (missing, lines[-1])
    assert (run / "samples" / f"{IMAGES:010d}.png").is_file()
    assert checkpoint.find(run / "checkpoints").images == IMAGES


def half_done(run: Path, copy: Path) -> Path:
    """A copy of a run as it was after its first checkpoint of two."""
    shutil.copytree(run, copy)
    shutil.rmtree(copy / "checkpoints" / f"step-{IMAGES:010d}")
    return copy


def assert_same(one: Path, other: Path) -> None:
    """Two finished runs hold the same bits and tell the same numbers."""
    ours, theirs = (checkpoint.find(run / "checkpoints") for run in (one, other))
    files = sorted(path.name for path in ours.path.glob("*.safetensors"))
    assert files == sorted(path.name for path in theirs.path.glob("*.safetensors"))
    for name in files:
        a, b = (step.tensors(name.removesuffix(".safetensors")) for step in (ours, theirs))
        assert a.keys() == b.keys()
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, f"{name}: {different[0]} differs"
    assert ours.state["data"] == theirs.state["data"]
    told = [
        [{k: v for k, v in x.items() if k not in TIMES} for x in read_stats(r)]
        for r in (one, other)
    ]
    assert told[0] == told[1]
