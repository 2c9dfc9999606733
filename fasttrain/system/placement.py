"""Rank of this process among the launched ones, from the variables that launchers set."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence

from fasttrain.system.errors import UserError

__all__ = ["first_host", "own_gpu", "place", "some_without_gpu"]


def place() -> tuple[int, int]:
    """Rank and number of processes, from RANK and WORLD_SIZE or SLURM's variables, else (0, 1).

    Raises UserError when the variables are not valid numbers.
    """
    _from_slurm()
    size = _number("WORLD_SIZE", 1, least=1)
    rank = _number("RANK", 0, below=size)
    if size > 1:
        _number("MASTER_PORT", None, least=1, below=1 << 16)
        if not os.environ.get("MASTER_ADDR"):
            raise UserError(
                f"WORLD_SIZE is {size}, but MASTER_ADDR, the address of the first host, is not set"
            )
    return rank, size


def own_gpu(count: int) -> int:
    """The number of this process's GPU among the `count` that it sees. A single one, as under srun,
    is 0.

    Raises UserError when the host has fewer GPUs than processes: two of one GPU are refused by NCCL
    after all have connected.
    """
    local = int(os.environ.get("LOCAL_RANK", 0))
    if 1 < count <= local:
        raise UserError(
            f"{platform.node()} has {count} GPUs, and a process numbered {local} was started "
            f"there: start {count} at most"
        )
    return local % count


def some_without_gpu(told: Sequence[str]) -> str:
    """A line when only some processes have a GPU, else nothing. told: by each, the type of its
    device and its host, `cuda gpu01`."""
    cpu, cuda = (
        ", ".join(dict.fromkeys(each.removeprefix(kind) for each in told if each.startswith(kind)))
        for kind in ("cpu ", "cuda ")
    )
    if not cpu or not cuda:
        return ""
    return (
        f"processes on {cpu} see no GPU, those on {cuda} do: look at nvidia-smi and "
        f"CUDA_VISIBLE_DEVICES there; CUDA_VISIBLE_DEVICES= on all hosts trains on CPUs"
    )


def _number(name: str, default: int | None, *, least: int = 0, below: int | None = None) -> int:
    """Value of a variable that the launcher sets."""
    text = os.environ.get(name, "" if default is None else str(default))
    if not text.isdecimal() or int(text) < least or (below is not None and int(text) >= below):
        limit = f" below {below}" if below is not None else ""
        raise UserError(
            f"{name} is {text!r}, not a number from {least}{limit}: start by a launcher, which "
            f"sets it, or leave WORLD_SIZE unset for one process"
        )
    return int(text)


def _from_slurm() -> None:
    """Set the usual variables inside an `srun` step of several tasks. A batch script outside a step
    has SLURM_NTASKS too, but is a single process."""
    tasks = int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))
    if tasks < 2 or "RANK" in os.environ:
        return
    job = int(os.environ.get("SLURM_JOB_ID", 0))
    hosts = os.environ.get("SLURM_STEP_NODELIST") or os.environ.get("SLURM_NODELIST", "127.0.0.1")
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = str(tasks)
    os.environ["LOCAL_RANK"] = os.environ.get("SLURM_LOCALID", "0")
    os.environ.setdefault("MASTER_ADDR", first_host(hosts))
    os.environ.setdefault("MASTER_PORT", str(20_000 + job % 12_000))  # below Linux's own


def first_host(nodelist: str) -> str:
    """`rack[1-2]gpu[07-09,12],login1` -> `rack1gpu07`: the first host of a SLURM node list."""
    first = re.match(r"(?:[^,[]|\[[^]]*\])*", nodelist)
    return re.sub(r"\[([^],-]*)[^]]*\]", r"\1", first[0] if first else nodelist)
