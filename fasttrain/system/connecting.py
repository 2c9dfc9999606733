"""A time limit for connecting to other processes.

    limit_connecting(end_this_process)       # `fasttrain.system.processes.start` does
    with connecting(minutes=30):
        ...                                  # a backend connects

NCCL, while it connects, waits forever for a process that has died, whatever its timeout.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["connecting", "limit_connecting"]

GRACE = 1.0
"""Seconds after the timeout for a backend to report it itself, with the missing rank."""

_overdue: Callable[[], object] | None = None


def limit_connecting(overdue: Callable[[], object] | None) -> None:
    """Set the function that `connecting` calls, in another thread, after its time limit; it must
    end the process. None: no limit."""
    global _overdue
    _overdue = overdue


@contextmanager
def connecting(minutes: float, beyond: float = GRACE) -> Iterator[None]:
    """A section in which backends connect; the process ends when it takes longer than `minutes`.

    beyond: additional seconds, for other work in the section.
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
