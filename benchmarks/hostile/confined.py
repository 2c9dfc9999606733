"""A reader in a process of its own, which may take so much memory and no more.

    with Confined(target.read, target.samples, megabytes=200) as child:
        problem = child(data)            # "" or what came out of the reader

What the reader's libraries keep for themselves is there before the bound is set: it reads the
sound samples first. The bound is on addresses: what Pillow, NumPy and zlib ask for counts too.
"""

from __future__ import annotations

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

__all__ = ["Confined", "bound_memory"]

PATIENCE = 60.0
"""Seconds after which a reader counts as hung."""


def bound_memory(megabytes: int) -> None:
    """Let this process allocate so much more than it has."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    most = used + (megabytes << 20)
    resource.setrlimit(resource.RLIMIT_AS, (most, most))


class Confined:
    """Calls a function in a forked process; started anew when it dies."""

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
