"""SIGTERM, SIGUSR1 and Ctrl-C ask a training process to stop; so does the death of its launcher.

    signals = StopSignals()
    while not signals.asked: ...
    signals.restore()

The first signal is only noted, and said: the loop ends its iteration and writes a checkpoint. A
second one does what the signal did before. A launched process leaves Ctrl-C to its launcher, which
asks all processes to stop.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["STOP", "StopSignals"]

STOP = (signal.SIGTERM, signal.SIGUSR1)

NOTICE = b"\nfasttrain: stopping with a checkpoint after this iteration; Ctrl-C again: at once\n"


class StopSignals:
    """Takes the signals over, in the main thread (elsewhere Python allows no handlers)."""

    def __init__(self) -> None:
        self.received = False
        self.parent = os.getppid()
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            numbers = STOP if "RANK" in os.environ else (*STOP, signal.SIGINT)
            self.before = {number: signal.signal(number, self._note) for number in numbers}

    @property
    def asked(self) -> bool:
        """Whether this process should stop: a launcher that has died cannot end it any more."""
        return self.received or (os.getppid() != self.parent and "RANK" in os.environ)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self.restore()
        if number == signal.SIGINT:
            os.write(2, NOTICE)  # not print: the signal may have interrupted one

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
