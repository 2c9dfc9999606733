"""SIGTERM, SIGUSR1 and Ctrl-C ask a training process to stop; so does the death of its launcher.

    signals = StopSignals()
    while not signals.asked: ...
    signals.restore()

The first signal sets a flag: the loop ends its iteration and writes a checkpoint. A second one has
the signal's previous effect, but in a launched process: SLURM and a launcher may both send the same
request, and kill what does not end. That process also leaves Ctrl-C to its launcher, which asks all
processes to stop; one that a shell started in the background keeps ignoring it.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["STOP", "StopSignals", "ignore_stop"]

STOP = (signal.SIGTERM, signal.SIGUSR1)

NOTICE = b"\nfasttrain: stopping with a checkpoint after this iteration; Ctrl-C again: at once\n"
"""The iteration may include an evaluation of minutes."""


class StopSignals:
    """Handles the signals, in the main thread (elsewhere Python allows no handlers)."""

    def __init__(self) -> None:
        self.received = False
        self.parent = os.getppid()
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
            numbers = STOP if ignored or "RANK" in os.environ else (*STOP, signal.SIGINT)
            self.before = {number: signal.signal(number, self._note) for number in numbers}

    @property
    def asked(self) -> bool:
        """Whether this process should stop, also because its launcher died and cannot end it."""
        return self.received or (os.getppid() != self.parent and "RANK" in os.environ)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        if "RANK" not in os.environ:
            self.restore()
        if number == signal.SIGINT:
            os.write(2, NOTICE)  # not print: the signal may have interrupted one

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}


def ignore_stop() -> None:
    """Let this process end by itself, with its own exit status, from now on: when the first of
    several has ended, srun, torchrun and DeepSpeed terminate those that have not. They kill them
    when they take long."""
    if threading.current_thread() is threading.main_thread():
        for number in STOP:
            signal.signal(number, signal.SIG_IGN)
