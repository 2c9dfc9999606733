"""Calls that make the host wait for the GPU: counted by kind, and by the line that made them.

with waits.counted() as seen:
    train_one_iteration()
assert seen.total() == 2, seen.lines
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import torch

__all__ = ["Waits", "counted", "wait"]

HOMES = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
"""Whose lines are passed over when a waiting line is looked for."""


@dataclass
class Waits:
    """Waiting calls.

    Attributes:
        kinds: `item`, `device to host`, `host to device`, ... -> how many.
        lines: (kind, file:line) -> how many; the innermost line outside of torch.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    lines: Counter[tuple[str, str]] = field(default_factory=Counter)

    def total(self) -> int:
        return self.kinds.total()

    def clear(self) -> None:
        self.kinds.clear()
        self.lines.clear()


_listeners: list[Waits] = []


def wait(kind: str) -> None:
    """Note a call that waits; called where it happens."""
    if not _listeners:
        return
    line = _line()
    for seen in _listeners:
        seen.kinds[kind] += 1
        seen.lines[kind, line] += 1


def _line() -> str:
    frame = sys._getframe(1)
    while frame is not None and frame.f_code.co_filename.startswith((*HOMES, "<frozen")):
        frame = frame.f_back  # type: ignore[assignment]
    return "?" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno}"


@contextmanager
def counted() -> Iterator[Waits]:
    """Count the waiting calls of all threads meanwhile."""
    seen = Waits()
    _listeners.append(seen)
    try:
        yield seen
    finally:
        _listeners.remove(seen)
