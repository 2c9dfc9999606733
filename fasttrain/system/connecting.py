"""A limit to the time that connecting to other processes may take.

    limit_connecting(end_this_process)       # `fasttrain.system.processes.start` does
    with connecting(minutes=30):
        ...                                  # a backend connects

NCCL, while it connects, waits for ever for a process that has died, whatever timeout it was given.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["connecting", "limit_connecting"]

GRACE = 1.0
"""Seconds that a backend has, when the time is up, to say so itself, and of whom."""

_overdue: Callable[[], object] | None = None


def limit_connecting(overdue: Callable[[], object] | None) -> None:
    """From now on `connecting` calls this, in another thread, when the time is up; it must end the
    process. None: no limit."""
    global _overdue
    _overdue = overdue


@contextmanager
def connecting(minutes: float, beyond: float = GRACE) -> Iterator[None]:
    """A part of the program in which backends connect, which ends the process when it takes longer.

    beyond: seconds on top, for what is done there besides waiting.
    """
    if _overdue is None:
        yield
        return
    timer = threading.Timer(minutes * 60 + beyond, _overdue)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
