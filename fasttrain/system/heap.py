"""Memory of tensors and of Python's objects, as a program needs it that allocates the same again
and again.

Memory that a CPU's tensors leave goes to the next ones, not back to the system.

glibc maps a large block when it is allocated and unmaps it when it is freed, so that each
activation of each iteration costs a page fault for every 4 KB: a quarter of the CPU time was the
kernel's. Fine-tuning of Fashion-MNIST, 320 images, one core (CPU seconds of the program, of the
kernel, and the most memory held):

    as glibc does it     29.9    10.7    1,367 MB
    kept                 30.9     1.1    1,459 MB

Python's collector looks at all objects there are when many new ones have survived, as those of
imported modules do: 0.7 of the 5.9 CPU seconds before the first iteration went there.
"""

from __future__ import annotations

import ctypes
import gc
import os

__all__ = ["collect_rarely", "keep_memory"]

KEPT = 1 << 30
"""Blocks of up to so many bytes are not mapped, and as many freed ones are not given back."""
RARELY = 100
"""Looks at objects that survived once for one at all objects, ten times Python's own number."""
TRIM_THRESHOLD, MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_memory() -> bool:
    """Keep freed memory for later blocks, in this process and those it forks; True if that is so.

    Nothing is done where the user has chosen (`MALLOC_...`, `GLIBC_TUNABLES`, another allocator by
    `LD_PRELOAD`), or without glibc.
    """
    own = ("MALLOC_", "GLIBC_TUNABLES", "LD_PRELOAD")
    if any(name.startswith(own) and value for name, value in os.environ.items()):
        return False
    if "CS_GNU_LIBC_VERSION" not in getattr(os, "confstr_names", {}):
        return False
    mallopt = ctypes.CDLL(None).mallopt
    mapped, trimmed = mallopt(MMAP_THRESHOLD, KEPT), mallopt(TRIM_THRESHOLD, KEPT)
    return bool(mapped and trimmed)


def collect_rarely() -> None:
    """Let Python look at all objects a tenth as often. Young ones, among them cycles that an
    iteration leaves, which may hold tensors, are looked at as before."""
    young, middle, old = gc.get_threshold()
    gc.set_threshold(young, middle, max(old, RARELY))
