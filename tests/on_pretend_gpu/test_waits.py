"""Calls that make the host wait for the GPU: their number in an iteration and at a checkpoint,
which does not depend on how many tensors there are. `docs/performance.md` says which they are."""

from __future__ import annotations

from typing import Any

import pytest

from tests.on_pretend_gpu.runs import Trained

NORM = "item fasttrain/engines.py"
READ = "device to host fasttrain/distributed.py"
VERDICT = "item deepspeed/runtime/utils.py"
SENTINEL = "host to device deepspeed/runtime/utils.py"


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
        "item fasttrain/engines.py": 2,
        "item fasttrain/recovery.py": 1,
    }


def test_a_checkpoint_of_two_waits_for_what_ranks_tell_each_other(trained: Trained) -> None:
    """Objects travel as tensors of the GPU: lengths and bytes, there and back."""
    for rank, found in enumerate(trained.two(0)[1]):
        assert sum(waits(found, "report, save after 1").values()) <= 40, rank
