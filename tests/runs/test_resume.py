"""SIGKILL at any moment, the same command again: the run ends bit-identical to an unbroken one."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import TIMES, read_stats


def command(task: list[str]) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, "-m", "fasttrain", *task],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def run_to_the_end(task: list[str]) -> None:
    process = command(task)
    _, errors = process.communicate(timeout=240)
    assert process.returncode == 0, errors.decode()


def kill_after(task: list[str], run: Path, images: int, extra: float) -> None:
    """SIGKILL the command `extra` seconds after its stats reach `images`."""
    process = command(task)
    until = time.monotonic() + 120
    while not any(line["images"] >= images for line in read_stats(run)):
        assert process.poll() is None, process.communicate()[1].decode()
        assert time.monotonic() < until
        time.sleep(0.005)
    time.sleep(extra)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "it ended before it was killed"


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
    run_to_the_end([*task, f"run={unbroken}"])
    chance = random.Random(0)
    for images in (32, 128, 224):  # before the first checkpoint, and between later ones
        kill_after([*task, f"run={broken}"], broken, images, chance.uniform(0, 0.15))
    run_to_the_end([*task, f"run={broken}"])
    assert_same_end(unbroken, broken)


@pytest.mark.slow
def test_pretrain_killed_ends_bit_identical(digits: Path, tmp_path: Path) -> None:
    unbroken, broken = tmp_path / "unbroken", tmp_path / "broken"
    task = [
        "pretrain",
        "digits-edm",
        f"data.path={digits}",
        "network.model_channels=16",
        "network.num_blocks=1",
        "precision=float32",
        "network.dropout=0.1",
        "batch=64",
        "images=1280",
        "report_every=64",
        "checkpoint.every=256",
    ]
    run_to_the_end([*task, f"run={unbroken}"])
    kill_after([*task, f"run={broken}"], broken, 320, 0.02)
    run_to_the_end([*task, f"run={broken}"])
    assert_same_end(unbroken, broken)
