"""A reader in a process of its own, which may take so much memory and no more.

    with Confined(target.read, target.samples, megabytes=200) as child:
        problem = child(data)            # "" or what came out of the reader

What the reader's libraries keep for themselves is there before the bound is set: it reads the
sound samples first. The bound is on addresses: what Pillow, NumPy and zlib ask for counts too.
Memory that the process had freed before would not count, so that is taken first.
"""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import resource
import traceback
import warnings
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from pathlib import Path
from types import TracebackType
from typing import Self

__all__ = ["LIBC", "Confined", "bound_memory"]

PATIENCE = 60.0
"""Seconds after which a reader counts as hung."""

LIBC = ctypes.CDLL(None)
"""Whose `malloc` and `free` Python's libraries use."""
LIBC.malloc.argtypes, LIBC.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
LIBC.malloc_trim.argtypes = [ctypes.c_size_t]
LIBC.free.argtypes, LIBC.free.restype = [ctypes.c_void_p], None


def bound_memory(megabytes: int) -> None:
    """Let this process allocate so much more than it has."""
    _take_what_was_freed()
    most = _addresses() + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


def _addresses() -> int:
    """Bytes of this process's address space."""
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _take_what_was_freed() -> None:
    """Hold the heap's free blocks: a long-lived parent's hundreds of megabytes of them would serve
    a reader without one new address."""
    for size in (1 << power for power in range(27, 15, -1)):
        while True:
            before, block = _addresses(), LIBC.malloc(size)
            if _addresses() > before:
                LIBC.free(block)
                break


class Confined:
    """Calls a function in a forked process; started again when it dies."""

    def __init__(
        self, read: Callable[[bytes], object], samples: Iterable[bytes], megabytes: int
    ) -> None:
        self._read, self._samples, self._megabytes = read, tuple(samples), megabytes

    def __enter__(self) -> Self:
        context = multiprocessing.get_context("fork")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=self._serve, args=(other,))
        self._process.start()
        other.close()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._pipe.close()
        self._process.kill()
        self._process.join()

    def __call__(self, data: bytes) -> str:
        try:
            self._pipe.send_bytes(data)
            if self._pipe.poll(PATIENCE):
                return self._pipe.recv_bytes().decode()
            problem = f"no answer in {PATIENCE:.0f} s"
        except (EOFError, OSError):
            self._process.join()
            problem = f"the process died with status {self._process.exitcode}"
        self.__exit__(None, None, None)
        self.__enter__()
        return problem

    def _serve(self, pipe: Connection) -> None:
        self._pipe.close()
        os.fsync = lambda fd: None
        warnings.simplefilter("ignore")
        # What a long-lived parent holds would be copied at each fork of a reader that forks.
        gc.freeze()
        LIBC.malloc_trim(0)
        for sample in self._samples:
            self._read(sample)
        bound_memory(self._megabytes)
        while True:
            try:
                data = pipe.recv_bytes()
            except EOFError:
                return
            try:
                self._read(data)
                problem = ""
            except Exception:
                problem = traceback.format_exc()
            pipe.send_bytes(problem.encode("utf-8", "backslashreplace"))
