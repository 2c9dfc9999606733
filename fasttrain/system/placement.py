"""Rank of this process among the launched ones, from the variables that launchers set."""

from __future__ import annotations

import os
import platform
import re

from fasttrain.system.errors import UserError

__all__ = ["first_host", "own_gpu", "place"]


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
    os.environ.setdefault("MASTER_PORT", str(20_000 + job % 20_000))


def first_host(nodelist: str) -> str:
    """`gpu[07-09,12],login1` -> `gpu07`: the first host of a SLURM node list."""
    prefix, bracket, rest = nodelist.partition("[")
    if not bracket or "," in prefix:
        return nodelist.split(",")[0]
    inside, _, after = rest.partition("]")
    return prefix + re.split("[-,]", inside)[0] + after.split(",")[0]
