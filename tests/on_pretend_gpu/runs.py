"""What tests see of runs that the pretend GPUs made."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path
from typing import Any

import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import TIMES, read_stats
from tests.on_pretend_gpu.machine import Machine
from tests.on_pretend_gpu.trainings import FINETUNE, IMAGES

__all__ = ["Trained", "assert_complete", "assert_same", "half_done", "numbers"]

BRIEFLY = "evaluate={samples: 12, components: null}"
"""Without eigenvectors of 1280 features, which the runs of one process have."""
SHARD_ALL = "engine.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"


class Trained:
    """Fine-tuning runs, each made once."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self.machine, self.folder = machine, folder
        self.found: dict[str, list[dict[str, Any]]] = {}
        self.changes: dict[str, tuple[str, ...]] = {}

    def words(self, name: str, *changes: str) -> list[str]:
        """The command line of a run."""
        places = {"data.path": "digits", "init": "base", "run": name}
        given = [f"{key}={self.folder / place}" for key, place in places.items()]
        return ["finetune", *FINETUNE, *given, *changes]

    def run(self, name: str, *changes: str, **options: Any) -> tuple[Path, list[dict[str, Any]]]:
        """The finished run, and what `trainings.train` found on each rank."""
        if name not in self.found:
            words, self.changes[name] = self.words(name, *changes), changes
            self.found[name] = self.machine.run("trainings:train", *words, **options)
        return self.folder / name, self.found[name]

    def again(self, name: str) -> Path:
        """Half of a run of two processes, resumed."""
        half = half_done(self.folder / name, self.folder / f"{name}-again")
        words = self.words(half.name, *self.changes[name])
        self.machine.run("trainings:command", *words, ranks=2)
        return half

    def two(self, stage: int) -> tuple[Path, list[dict[str, Any]]]:
        """A run of two processes under DeepSpeed. That of stages 1 and 2 was killed in its second
        iteration, and resumed; at stage 2 each process sees its own GPU only."""
        name, changes = f"zero-{stage}", [f"engine.zero_stage={stage}", BRIEFLY]
        if stage == 3:
            changes.append(SHARD_ALL)
        options = {"CUDA_VISIBLE_DEVICES": "{rank}"} if stage == 2 else {}
        if stage in (1, 2) and name not in self.found:
            words = self.words(name, *changes)
            killed = [-signal.SIGKILL] * 2
            self.machine.run("trainings:killed", *words, ranks=2, expect=killed, **options)
        return self.run(name, *changes, ranks=2, **options)


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
    assert numbers(one) == numbers(other)


def numbers(run: Path) -> list[dict[str, float]]:
    """The lines of a run, without those numbers that are of the clock."""
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_stats(run)]
