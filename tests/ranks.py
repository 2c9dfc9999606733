"""Several ranks of one job, forked from the test: what is imported here need not be imported in
each, which costs five seconds of a core.

on_ranks(2, lambda world: train(world, run), folder)
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import torch

from fasttrain.system.processes import World, start, stop
from tests.faults.child import WARM, WITH_DEEPSPEED, forked, free_port, warm_up

__all__ = ["all_end", "be_rank", "on_ranks"]

SECONDS = 1500
ALL = (*WARM, *WITH_DEEPSPEED)


def on_ranks(
    count: int,
    work: Callable[[World], object],
    folder: Path,
    after: Callable[[], object] = lambda: None,
    warm: Iterable[str] = ALL,
) -> None:
    """Do `work(world)` as each of so many ranks, with one thread, their words in `folder`, and
    `after()` when they have parted. warm: what is imported in advance.

    Raises AssertionError with what was said when one fails.
    """
    port = free_port()
    works = [partial(_work, rank, count, port, work, after) for rank in range(count)]
    all_end(works, folder, warm)


def all_end(works: Sequence[Callable[[], object]], folder: Path, warm: Iterable[str] = ALL) -> None:
    """Do each in a process of its own, with DeepSpeed imported in advance unless `warm` is less.

    Raises AssertionError with what was said when one fails; the others are ended.
    """
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    warm_up(warm)
    children = [forked(folder / f"rank-{rank}.log", work) for rank, work in enumerate(works)]
    until, failed = time.monotonic() + SECONDS, ""
    for child in children:
        with suppress(AssertionError):
            if child.wait(0.1 if failed else until - time.monotonic()):
                failed = failed or child.said() or "a process failed without a word"
    assert not failed, failed[-4000:]
    assert all(child.status == 0 for child in children)


def be_rank(rank: int, count: int, port: int) -> None:
    """Set the variables that a launcher sets; for one process they are absent."""
    torch.set_num_threads(1)
    comm = sys.modules.get("deepspeed.comm.comm")
    if comm is not None:
        comm.cdb = None  # type: ignore[attr-defined]  # of a run in the test's own process
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        os.environ.pop(name, None)
    if count > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}


def _work(
    rank: int,
    count: int,
    port: int,
    work: Callable[[World], object],
    after: Callable[[], object],
) -> None:
    be_rank(rank, count, port)
    try:
        work(start())
    finally:
        stop()
    after()
