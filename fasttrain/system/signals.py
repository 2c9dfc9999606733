"""SIGTERM and SIGUSR1 ask a training process to stop; so does the death of its launcher.

    signals = StopSignals()
    while not signals.asked: ...
    signals.restore()

The first signal only sets a flag: the loop ends its iteration and writes a checkpoint. A second one
has the signal's previous effect.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

__all__ = ["STOP", "StopSignals"]

STOP = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Handles the signals, in the main thread (elsewhere Python allows no handlers)."""

    def __init__(self) -> None:
        self.received = False
        self.parent = os.getppid()
        self.before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            self.before = {number: signal.signal(number, self._note) for number in STOP}

    @property
    def asked(self) -> bool:
        """Whether this process should stop, also because its launcher died and cannot end it."""
        return self.received or (os.getppid() != self.parent and "RANK" in os.environ)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.received = True
        self.restore()

    def restore(self) -> None:
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}
