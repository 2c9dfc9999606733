"""Which GPUs there are, which is current, and who may touch them.

As with CUDA, `CUDA_VISIBLE_DEVICES` counts when a process first touches a GPU, and a child of
`fork` may not touch one once its parent has.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch

from .native import library

__all__ = [
    "MACHINE",
    "Machine",
    "count",
    "current",
    "fresh",
    "index_of",
    "is_bad_fork",
    "is_touched",
    "set_current",
    "touch",
    "touch_driver",
    "watch_forks",
]


@dataclass
class Machine:
    """The GPUs of this pretend machine."""

    gpus: int = 1
    name: str = "NVIDIA H100 80GB HBM3"
    capability: tuple[int, int] = (9, 0)
    memory: int = 80 << 30


MACHINE = Machine()
_touched = False  # by this process
_driver = False  # was asked for the number of GPUs, which forbids a fork too
_bad_fork = False
_count = 0


def _visible() -> int:
    """GPUs that CUDA_VISIBLE_DEVICES leaves; as with CUDA, the first number that names none ends
    the list."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return MACHINE.gpus
    found = 0
    for number in chosen.split(","):
        if not number.strip().isdecimal() or int(number) >= MACHINE.gpus:
            break
        found += 1
    return found


def count() -> int:
    """Visible GPUs."""
    return _count if _touched else _visible()


def touch() -> None:
    """What every use of a GPU begins with. Raises RuntimeError where CUDA cannot be used."""
    global _touched, _driver, _count
    if _bad_fork:
        raise RuntimeError(
            "Cannot re-initialize CUDA in forked subprocess. To use CUDA with multiprocessing, you "
            "must use the 'spawn' start method"
        )
    if not _touched:
        _count = _visible()
        library.pretend_devices(_count)
        _touched = _driver = True
    if not _count:
        raise RuntimeError("No CUDA GPUs are available")


def touch_driver() -> None:
    """What `torch.cuda.is_available` does: the driver is up from then on."""
    global _driver
    _driver = True


def is_touched() -> bool:
    return _touched


def is_bad_fork() -> bool:
    return _bad_fork


def fresh() -> None:
    """From now on this process, a child of `fork`, counts as one that was newly started. For tests
    that fork from a process with everything imported, to save its seconds."""
    global _touched, _driver, _bad_fork
    _touched = _driver = _bad_fork = False


def _in_child() -> None:
    global _bad_fork
    _bad_fork = _bad_fork or _driver


def current() -> int:
    """The current GPU of this thread."""
    return int(library.pretend_get())


def set_current(device: Any) -> None:
    """Make a GPU the current one of this thread; nothing for a negative number."""
    index = device if isinstance(device, int) else index_of(device)
    if index >= 0:
        library.pretend_set(index_of(index))


def index_of(device: Any) -> int:
    """The number of a CUDA device; the current one of none. Raises what CUDA does when it is not
    there."""
    touch()
    named = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    index = named.index if named.index is not None else current()
    if index >= _count:
        raise torch.AcceleratorError(
            f"CUDA error: invalid device ordinal (cuda:{index} of {_count})"
        )
    return index


def watch_forks() -> None:
    """Remember in every child whether its parent has used a GPU."""
    os.register_at_fork(after_in_child=_in_child)
