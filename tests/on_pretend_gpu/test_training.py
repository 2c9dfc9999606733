"""Trainings on pretend GPUs, as users start them: nothing is set but what makes them small."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from tests.on_pretend_gpu.machine import Machine
from tests.on_pretend_gpu.runs import assert_complete, assert_same, half_done
from tests.on_pretend_gpu.trainings import FINETUNE

NUMBERS = ("loss/generator", "loss/discriminator", "loss/r1", "gradient/generator", "fd", "kd")
SHARD_ALL = "engine.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"


def words(folder: Path, run: str, *changes: str) -> list[str]:
    """The command line of a fine-tuning run."""
    places = [f"data.path={folder / 'digits'}", f"init={folder / 'base'}", f"run={folder / run}"]
    return ["finetune", *FINETUNE, *places, *changes]


def test_pretraining(machine: Machine, folder: Path) -> None:
    assert_complete(folder / "base", "loss/denoising", "gradient/denoiser")


def test_fine_tuning_killed_and_resumed(machine: Machine, folder: Path) -> None:
    """One process, by default with a reader process and page-locked batches."""
    (found,) = machine.run("trainings:command", *words(folder, "tuned"))
    assert found["peak"][0] > 1 << 20
    assert_complete(folder / "tuned", *NUMBERS)
    killed = words(folder, "killed")
    machine.run("trainings:killed", *killed, expect=[-signal.SIGKILL])
    machine.run("trainings:command", *killed)
    assert_same(folder / "tuned", folder / "killed")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_two_processes(machine: Machine, folder: Path, stage: int) -> None:
    """DeepSpeed on cuda:0 and cuda:1, and the run resumed from half of it."""
    changes = [f"engine.zero_stage={stage}", *([SHARD_ALL] if stage == 3 else [])]
    name = f"zero-{stage}"
    found = machine.run("trainings:command", *words(folder, name, *changes), ranks=2)
    assert [rank["current"] for rank in found] == [0, 1]
    assert all(rank["peak"][rank["current"]] > 1 << 20 for rank in found)
    assert_complete(folder / name, *NUMBERS)
    half_done(folder / name, folder / f"{name}-again")
    machine.run("trainings:command", *words(folder, f"{name}-again", *changes), ranks=2)
    assert_same(folder / name, folder / f"{name}-again")
