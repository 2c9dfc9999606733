"""Trainings on pretend GPUs, as users start them: nothing is set but what makes them small. So
activations and frozen weights are bfloat16 and channels_last, and batches come from a reader
process through page-locked memory.

The last tests count the calls of these runs that make the host wait for the GPU: their number in an
iteration and at a checkpoint, which does not depend on how many tensors there are.
`docs/performance.md` says which they are.
"""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain.checkpoints import checkpoint
from tests.on_pretend_gpu.machine import Machine
from tests.on_pretend_gpu.runs import BRIEFLY, Trained, assert_complete, assert_same, numbers
from tests.on_pretend_gpu.trainings import IMAGES, PRETRAIN

NUMBERS = ("loss/generator", "loss/discriminator", "loss/r1", "gradient/generator", "fd", "kd")
NORM = "item fasttrain/training/engines/engine.py"
READ = "device to host fasttrain/system/processes.py"
VERDICT = "item deepspeed/runtime/utils.py"
SENTINEL = "host to device deepspeed/runtime/utils.py"


def test_pretraining(folder: Path) -> None:
    assert_complete(folder / "base", "loss/denoising", "gradient/denoiser")


@pytest.mark.parametrize("stage", [0, 1, 2, 3])
def test_pretraining_by_two(machine: Machine, folder: Path, stage: int) -> None:
    """The first iteration is that of one process, but for the rounding of bfloat16 gradients."""
    run = folder / f"base-{stage}"
    words = [*PRETRAIN, f"data.path={folder / 'digits'}", f"run={run}", f"images={IMAGES // 2}"]
    machine.run("trainings:command", "pretrain", *words, f"engine.zero_stage={stage}", ranks=2)
    ours, theirs = numbers(run)[0], numbers(folder / "base")[0]
    assert ours == pytest.approx(theirs, rel=2e-3)
    assert checkpoint.find(run / "checkpoints").images == IMAGES // 2


def test_fine_tuning_is_killed_and_resumed(machine: Machine, trained: Trained) -> None:
    """Once unbroken, once killed by SIGKILL: the same bits."""
    run, (found,) = trained.run("tuned")
    assert found["peak"][0] > 1 << 20
    assert found["peak"][1] == 0
    assert_complete(run, *NUMBERS)
    about = json.loads((run / "discriminator.json").read_text())
    assert about["precision"] == "bfloat16"
    words = trained.words("killed")
    machine.run("trainings:killed", *words, expect=[-signal.SIGKILL])
    machine.run("trainings:command", *words)
    assert_same(run, trained.folder / "killed")


def test_other_settings(trained: Trained) -> None:
    """Micro-batches, approximated R1, augmented images that are reused, class features that are
    not stored; and the same in float32, that says how far off bfloat16 is."""
    data = trained.folder / "bare"
    shutil.copytree(trained.folder / "digits", data)
    (data / "class_features-32.safetensors").unlink()
    changes = [f"data.path={data}", "micro_batch=8", "reuse_fakes=true", "r1.kind=approximated"]
    changes += ["discriminator.augment=[flip]", "images=16", BRIEFLY]
    run, (found,) = trained.run("others", *changes, "tune_convolutions=true")
    assert (found["tuned"], found["after"]) == ([True], False)
    precise = ["precision=float32", "discriminator.precision=float32", "data.workers=0"]
    exact, (found,) = trained.run("precise", *changes, *precise)
    assert not any(found["tuned"])
    ours, theirs = numbers(run)[0], numbers(exact)[0]
    for name in ("loss/generator", "loss/discriminator", "logits/real"):
        assert ours[name] == pytest.approx(theirs[name], rel=0.05, abs=0.02)
        assert ours[name] != theirs[name]


@pytest.mark.parametrize("stage", [1, 2])
def test_two_processes(trained: Trained, stage: int) -> None:
    """DeepSpeed on two GPUs, killed and resumed: what an unbroken run at stage 0 computes."""
    plain, found = trained.two(0)
    assert [rank["current"] for rank in found] == [0, 1]
    assert all(rank["peak"][rank["current"]] > 1 << 20 for rank in found)
    assert_complete(plain, *NUMBERS)
    run, found = trained.two(stage)
    alone = stage == 2  # with its GPU, which is cuda:0 there
    assert [rank["current"] for rank in found] == ([0, 0] if alone else [0, 1])
    assert [len(rank["peak"]) for rank in found] == ([1, 1] if alone else [2, 2])
    assert_complete(run, *NUMBERS)
    ours, theirs = (checkpoint.find(r / "checkpoints") for r in (run, plain))
    for name in ("generator", "discriminator", "ema"):
        a, b = ours.tensors(name), theirs.tensors(name)
        assert a.keys() == b.keys()
        for key in a:
            torch.testing.assert_close(a[key], b[key], rtol=1e-5, atol=1e-9, msg=key)
    for a, b in zip(numbers(run), numbers(plain), strict=True):
        assert a == pytest.approx(b, rel=1e-5)


@pytest.mark.parametrize("stage", [0, 3])
def test_two_processes_resume(trained: Trained, stage: int) -> None:
    """From half of the run: the same bits."""
    run, _ = trained.two(stage)
    assert_complete(run, *NUMBERS)
    assert_same(run, trained.again(run.name))


def waits(found: dict[str, Any], part: str) -> dict[str, int]:
    """Kind and file -> waiting calls in that part of a training."""
    files: dict[str, int] = {}
    for line, count in found["waits"][part].items():
        name = line.rpartition(":")[0]
        files[name] = files.get(name, 0) + count
    return files


def test_one_process_waits_for_each_norm(trained: Trained) -> None:
    """The second iteration has a third step, R1's."""
    _, (found,) = trained.run("tuned")
    assert waits(found, "iteration 1") == {NORM: 2}
    assert waits(found, "iteration 2") == {NORM: 3}


def test_several_processes_wait_once_more(trained: Trained) -> None:
    """For the sum of what readers met and of who was asked to stop."""
    for found in trained.two(0)[1]:
        assert waits(found, "iteration 1") == {NORM: 2, READ: 1}
        assert waits(found, "iteration 2") == {NORM: 3, READ: 1}


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_waits_for_its_norms(trained: Trained, stage: int) -> None:
    """Twice a step: a -1 that it copies to the GPU, and whether the norm is finite. Stage 3 has
    the -1 in one of three steps alone, and two waits of its own for a flat gradient."""
    for found in trained.two(stage)[1]:
        second = waits(found, "iteration 2")
        if stage < 3:
            assert second == {VERDICT: 3, SENTINEL: 3, READ: 1}
        else:
            assert second.pop(READ) == 1
            assert second.pop(VERDICT) == 3
            assert all("deepspeed/" in line for line in second)
            assert sum(second.values()) <= 4


def test_a_checkpoint_waits_for_files_not_for_tensors(trained: Trained) -> None:
    """One copy for each dtype of a file, Adam's step of both engines, one look at all numbers."""
    _, (found,) = trained.run("tuned")
    assert waits(found, "report, save after 1") == {
        "device to host kernels/fasttrain_kernels/multi_tensor.py": 5,
        "item fasttrain/training/engines/engine.py": 2,
        "item fasttrain/training/run/recovery.py": 1,
    }


def test_a_checkpoint_of_two_waits_for_what_ranks_tell_each_other(trained: Trained) -> None:
    """Objects travel as tensors of the GPU: lengths and bytes, there and back."""
    for rank, found in enumerate(trained.two(0)[1]):
        assert sum(waits(found, "report, save after 1").values()) <= 40, rank
