"""Joining the launched processes, and the exit statuses of the command.

with training_processes(settings) as world: ...
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    from fasttrain.settings import RunSettings
    from fasttrain.system.processes import World

__all__ = ["LEFT_BEHIND", "STOPPED", "TRY_AGAIN"]


MISTAKE, TRY_AGAIN, STOPPED = 2, 75, 85
"""Exit statuses. After the last two the same command resumes: a machine, disk, network or another
process failed; stopped on request, with a checkpoint. Ctrl-C is 130, but for the first one in a
training."""


LEFT_BEHIND: list[Exception] = []
"""The error that ends this process while others may wait for it on their GPUs: NCCL would wait for
them in its turn when the group is left, and the error would never be printed."""


def alone_or_together() -> AbstractContextManager[World]:
    """The launched processes, or this one alone, for a command that starts over when run again."""
    return _together("run the same command again", timeout_minutes=24 * 60)


def training_processes(settings: RunSettings) -> AbstractContextManager[World]:
    """The launched processes of a training run."""
    return _together(
        f"the same command resumes from the last checkpoint in {settings.run}",
        timeout_minutes=settings.engine.timeout_minutes,
        force_group=settings.engine.kind == "deepspeed",
    )


@contextmanager
def _together(again: str, *, timeout_minutes: float, force_group: bool = False) -> Iterator[World]:
    """Join the launched processes. When another one is gone, or does not arrive, this one ends at
    once: collectives could wait for it for long."""
    from fasttrain.system import processes as distributed
    from fasttrain.system.signals import ignore_stop

    def lost(reason: str) -> NoReturn:
        rank = os.environ.get("RANK", "0")
        reason = " ".join(reason.partition("Exception raised from")[0].split())  # no C++ frames
        print(
            f"fasttrain: error: rank {rank} has lost contact with another process; {again} "
            f"({reason[:600]})",
            file=sys.stderr,
            flush=True,
        )
        os._exit(TRY_AGAIN)

    world = None
    try:
        world = distributed.start(
            force_group=force_group,
            timeout_minutes=timeout_minutes,
            overdue=lambda: lost(f"no connection within {timeout_minutes:g} minutes"),
        )
        yield world
    except Exception as error:
        if distributed.lost_contact(error):
            lost(str(error))
        if world is not None and world.size > 1:
            ignore_stop()
            if world.device.type == "cuda":
                LEFT_BEHIND.append(error)
        raise
    finally:
        if not LEFT_BEHIND:
            distributed.stop()
