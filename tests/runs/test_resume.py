"""SIGKILL at any moment, the same command again: the run ends bit-identical to an unbroken one."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import pytest
import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import TIMES, read_stats
from tests.faults.child import command
from tests.tiny import ONE_LEVEL


def run_to_the_end(task: list[str], log: Path) -> None:
    process = command(log, *task)
    assert process.wait() == 0, process.said()


def kill_after(task: list[str], run: Path, images: int, extra: float) -> None:
    """SIGKILL the command `extra` seconds after its stats reach `images`."""
    process = command(run.with_suffix(".log"), *task)
    until = time.monotonic() + 120
    while not any(line["images"] >= images for line in read_stats(run)):
        assert not process.ended(), process.said()
        assert time.monotonic() < until
        time.sleep(0.005)
    time.sleep(extra)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "it ended before it was killed"


def assert_same_end(one: Path, other: Path) -> None:
    ours, theirs = (checkpoint.find(run / "checkpoints") for run in (one, other))
    assert ours.images == theirs.images
    files = sorted(path.name for path in ours.path.glob("*.safetensors"))
    assert files
    assert files == sorted(path.name for path in theirs.path.glob("*.safetensors"))
    for name in files:
        a, b = (step.tensors(name.removesuffix(".safetensors")) for step in (ours, theirs))
        assert a.keys() == b.keys()
        for key in a:
            assert torch.equal(a[key], b[key]), f"{name}: {key} differs"
    assert ours.state["data"] == theirs.state["data"]
    a_lines, b_lines = (
        [{k: v for k, v in line.items() if k not in TIMES} for line in read_stats(run)]
        for run in (one, other)
    )
    assert a_lines == b_lines


@pytest.mark.slow
def test_finetune_killed_three_times_ends_bit_identical(quick: list[str], tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    task = ["finetune", "digits-d2o-f", *quick]
    run_to_the_end([*task, f"run={unbroken}"], tmp_path / "end.log")
    chance = random.Random(0)
    for images in (32, 128, 224):  # before the first checkpoint, and between later ones
        kill_after([*task, f"run={broken}"], broken, images, chance.uniform(0, 0.15))
    run_to_the_end([*task, f"run={broken}"], tmp_path / "end.log")
    assert_same_end(unbroken, broken)


@pytest.mark.slow
def test_pretrain_killed_ends_bit_identical(digits: Path, tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    task = [
        "pretrain",
        "digits-edm",
        f"data.path={digits}",
        *ONE_LEVEL,
        "precision=float32",
        "network.dropout=0.1",
        "batch=64",
        "images=1280",
        "report_every=64",
        "checkpoint.every=256",
    ]
    run_to_the_end([*task, f"run={unbroken}"], tmp_path / "end.log")
    kill_after([*task, f"run={broken}"], broken, 320, 0.02)
    run_to_the_end([*task, f"run={broken}"], tmp_path / "end.log")
    assert_same_end(unbroken, broken)
