"""What every process settles before it computes anything."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from fasttrain.system import placement
from fasttrain.system import processes as distributed
from fasttrain.system.errors import UserError
from fasttrain.system.placement import first_host
from fasttrain.system.processes import World, lost_contact, start


def test_float32_is_float32_from_the_start_on() -> None:
    """torch lets convolutions of float32 round their inputs to TF32 on a GPU unless told."""
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = True
    start()
    assert not torch.backends.cudnn.allow_tf32
    assert not torch.backends.cuda.matmul.allow_tf32


@pytest.mark.parametrize(
    ("nodelist", "first"),
    [
        ("gpu07", "gpu07"),
        ("gpu[07-09,12],login1", "gpu07"),
        ("gpu[3,5]", "gpu3"),
        ("a1,b[2-3]", "a1"),
        ("rack[1-2]-gpu", "rack1-gpu"),
        ("rack[1-2]n[1-4],login", "rack1n1"),
        ("a[07,09]b[3]c", "a07b3c"),
        ("10.0.0.7,10.0.0.8", "10.0.0.7"),
    ],
)
def test_the_first_host_of_a_slurm_node_list(nodelist: str, first: str) -> None:
    assert first_host(nodelist) == first


STEP = {
    "SLURM_STEP_NUM_TASKS": "16",
    "SLURM_PROCID": "9",
    "SLURM_LOCALID": "1",
    "SLURM_JOB_ID": "123456",
    "SLURM_STEP_NODELIST": "gpu[07-08]",
}
USUAL = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")


@pytest.fixture
def clean(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*STEP, *USUAL, "SLURM_NTASKS"):
        monkeypatch.setenv(name, "")  # so that what is set meanwhile is taken back
        monkeypatch.delenv(name)
    return monkeypatch


def found() -> dict[str, str]:
    return {name: placement.os.environ[name] for name in USUAL if name in placement.os.environ}


def test_a_task_of_srun_knows_its_place(clean: pytest.MonkeyPatch) -> None:
    for name, value in STEP.items():
        clean.setenv(name, value)
    placement._from_slurm()
    assert found() == {
        "RANK": "9",
        "WORLD_SIZE": "16",
        "LOCAL_RANK": "1",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": "23456",
    }


def test_the_port_of_a_job_is_below_those_that_linux_gives_away(clean: pytest.MonkeyPatch) -> None:
    for name, value in {**STEP, "SLURM_JOB_ID": "119999"}.items():
        clean.setenv(name, value)
    placement._from_slurm()
    assert found()["MASTER_PORT"] == "31999"


def test_what_a_launcher_says_comes_before_slurm(clean: pytest.MonkeyPatch) -> None:
    for name, value in {**STEP, "RANK": "0", "WORLD_SIZE": "2"}.items():
        clean.setenv(name, value)
    placement._from_slurm()
    assert found() == {"RANK": "0", "WORLD_SIZE": "2"}


def test_a_batch_script_outside_of_srun_is_one_process(clean: pytest.MonkeyPatch) -> None:
    """It has the variables of the job, and would wait for ever for the other tasks."""
    for name, value in {"SLURM_NTASKS": "16", "SLURM_PROCID": "0", "SLURM_JOB_ID": "1"}.items():
        clean.setenv(name, value)
    assert start().size == 1
    assert found() == {}


@pytest.mark.parametrize(("visible", "found_at"), [(8, 3), (1, 0)])
def test_the_environment_names_the_gpu_that_was_taken(
    clean: pytest.MonkeyPatch, visible: int, found_at: int
) -> None:
    """A task of srun may see its own GPU only; DeepSpeed takes LOCAL_RANK for a GPU's number."""
    taken: list[torch.device] = []
    clean.setattr(torch.cuda, "is_available", lambda: True)
    clean.setattr(torch.cuda, "device_count", lambda: visible)
    clean.setattr(torch.cuda, "set_device", taken.append)
    clean.setenv("LOCAL_RANK", "3")
    for _ in range(2):
        assert start().device == torch.device("cuda", found_at)
        assert found()["LOCAL_RANK"] == str(found_at)
    assert taken == [torch.device("cuda", found_at)] * 2


def test_more_processes_than_gpus_are_refused_on_the_host_that_has_too_few(
    clean: pytest.MonkeyPatch,
) -> None:
    """NCCL would refuse two processes of one GPU later, and not say which host it is."""
    clean.setattr(torch.cuda, "is_available", lambda: True)
    clean.setattr(torch.cuda, "device_count", lambda: 7)
    clean.setenv("LOCAL_RANK", "7")
    with pytest.raises(UserError, match=r"has 7 GPUs, and a process numbered 7 was started there"):
        start()


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE is 'two', not a number from 1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE is '0'"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK is '2', not a number from 0 below 2"),
        ({"RANK": "1"}, "RANK is '1'"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "MASTER_PORT is ''"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "99999"}, "MASTER_PORT is '99999'"),
        ({"WORLD_SIZE": "2", "RANK": "0", "MASTER_PORT": "29500"}, "MASTER_ADDR, .* is not set"),
    ],
)
def test_variables_that_make_no_sense_are_named(
    clean: pytest.MonkeyPatch, variables: dict[str, str], said: str
) -> None:
    for name, value in variables.items():
        clean.setenv(name, value)
    with pytest.raises(UserError, match=said):
        start()


def test_only_errors_of_collectives_are_lost_contact() -> None:
    said = "[.../gloo/transport/tcp/pair.cc:537] Connection closed by peer [127.0.0.1]:29097"
    assert lost_contact(RuntimeError(said))
    for kind in ("Backend", "Network", "Store"):
        assert lost_contact(getattr(torch.distributed, f"Dist{kind}Error")("whatever it says"))
    twice = "NCCL error in: NCCLUtils.cpp:93, invalid usage\nncclInvalidUsage: This usually"
    assert not lost_contact(torch.distributed.DistBackendError(twice))
    assert not lost_contact(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not lost_contact(ValueError(said))


def test_parts_of_one_process_are_whole() -> None:
    """Those of two are in tests/runs/test_deepspeed.py: every checkpoint there goes this way."""
    parts = [torch.arange(6.0), torch.zeros(0), torch.ones(3, dtype=torch.bfloat16)]
    whole = World(0, 1, torch.device("cpu")).assemble(parts, [6, 0, 3])
    assert all(torch.equal(a, b) and a.dtype == b.dtype for a, b in zip(whole, parts, strict=True))


def test_a_block_of_ranks_connects_while_somebody_looks_at_the_clock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """NCCL connects when a group is first used, and waits for a rank that has died for ever."""
    events: list[object] = []

    @contextmanager
    def watched(minutes: float, beyond: float = 1.0) -> Iterator[None]:
        events.append("watched")
        yield
        events.append("not watched")

    def new_group(ranks: range, **options: Any) -> range:
        assert options == {"use_local_synchronization": True}
        events.append(ranks)
        return ranks

    monkeypatch.setattr(distributed, "connecting", watched)
    monkeypatch.setattr(distributed, "_BLOCKS", {})
    monkeypatch.setattr(distributed.dist, "new_group", new_group)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda _, group: events.append(group))
    world = World(rank=5, size=8, device=torch.device("cpu"))
    add = world.block_sum(4)
    assert events == ["watched", range(4, 8), range(4, 8), "not watched"]
    add(torch.ones(1))
    world.block_sum(4)
    assert events[4:] == [range(4, 8)]
