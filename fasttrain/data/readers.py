"""Readers of a rank's logical streams: processes that read ahead, or a thread of this process.

    readers = Workers(source, cursors, count=2, pin=False, limit=600)       # or Inline
    part = readers.next(asked_to_stop)       # of all their streams, in stream order

A wait for a reader always ends: when the process is asked to stop, and when a reader has sent
nothing for `limit` seconds.
"""

from __future__ import annotations

import signal
import sys
import time
import weakref
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from queue import Empty, SimpleQueue
from threading import Thread, current_thread
from typing import Protocol

import numpy as np

from fasttrain.data.order import Cursor
from fasttrain.data.parts import Part, Source, page_locked
from fasttrain.data.patience import pause
from fasttrain.data.reader_process import (
    Died,
    Reader,
    end,
    received,
    release,
    start_reader,
    state_of,
)
from fasttrain.system.errors import Stopped, Unavailable, is_machine_fault

__all__ = ["Asked", "Inline", "Readers", "Workers"]

Asked = Callable[[], bool]
"""Whether this process was asked to stop."""
RESTARTS = 3
POLL = 0.2
"""Seconds between two checks of a wait whether to continue."""


class Readers(Protocol):
    """Reads a rank's streams."""

    def next(self, asked: Asked) -> Part:
        """The rank's part of the next batch.

        Raises Stopped when `asked()` becomes true first, Unavailable when it takes too long.
        """

    def close(self) -> None:
        """Release everything; the readers cannot be used again."""


class Errands:
    """A thread that takes the next part from an iterator for each `ask`, and closes it at the end.

    A wait for `result` can end before the thread's own wait does. Raises Unavailable when no thread
    can be started.
    """

    def __init__(self, parts: Generator[Part], name: str) -> None:
        self._wanted: SimpleQueue[bool] = SimpleQueue()
        self._done: SimpleQueue[Part | BaseException] = SimpleQueue()
        args = (parts, self._wanted, self._done)
        self._thread = Thread(target=_run, args=args, name=name, daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise Unavailable(f"no thread can be started to read images: {error}") from None
        # Also at the interpreter's exit, where a thread inside torch would abort the process.
        self._end = weakref.finalize(self, _end, self._wanted, self._thread)

    def ask(self) -> None:
        self._wanted.put(True)

    def result(self, asked: Asked, limit: float) -> Part | None:
        """The part for the oldest `ask`; None when there is none after `limit` seconds. Raises
        Stopped, and errors of the iterator."""
        waited = 0.0  # counts only while this process runs, not while all are suspended
        while True:
            try:
                outcome = self._done.get(timeout=POLL)
            except Empty:
                waited += POLL
                if asked():
                    raise Stopped("asked to stop while waiting for images") from None
                if waited >= limit:
                    return None
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

    def close(self) -> None:
        self._end()


def _end(wanted: SimpleQueue[bool], thread: Thread) -> None:
    wanted.put(False)
    if thread is not current_thread():  # garbage collection may run in it
        thread.join(timeout=1)


def _run(
    parts: Generator[Part], wanted: SimpleQueue[bool], done: SimpleQueue[Part | BaseException]
) -> None:
    with closing(parts):
        while wanted.get():
            try:
                done.put(next(parts))
            except BaseException as error:
                done.put(error)


class Inline:
    """A thread of this process reads on request, so that the main thread can stop during it."""

    def __init__(
        self, source: Source, cursors: Mapping[int, Cursor], pin: bool, limit: float
    ) -> None:
        self._name, self._limit = str(source.storage), limit
        parts = source.parts(cursors)
        if pin:
            parts = (page_locked(part) for part in parts)
        self._thread = Errands(parts, "read")

    def next(self, asked: Asked) -> Part:
        self._thread.ask()
        part = self._thread.result(asked, self._limit)
        if part is None:
            raise Unavailable(
                f"{self._name} has sent no images for {self._limit:g} s (data.reader_timeout): "
                "does its disk or server answer, or does a stage hang?"
            )
        return part

    def close(self) -> None:
        self._thread.close()


class Workers:
    """Forked processes read ahead, each a contiguous block of the streams, and send their parts
    through separate pipes: the death of a process is noticed at once, and no shared memory is
    needed. A thread merges the parts to the next batch during training.

    When a process is killed all are started again from the cursors of the last batch, so that
    nothing is lost or repeated.
    """

    def __init__(
        self, source: Source, cursors: Mapping[int, Cursor], count: int, pin: bool, limit: float
    ) -> None:
        self._source, self._cursors, self._pin, self._limit = source, dict(cursors), pin, limit
        self._count = min(count, len(cursors))
        self._restarts = 0
        self._start()

    def _start(self) -> None:
        """Raises Unavailable when no processes or pipes can be created."""
        shares = [
            list(map(int, share)) for share in np.array_split(list(self._cursors), self._count)
        ]
        for attempt in range(1, self._source.storage.attempts + 1):
            readers: list[Reader] = []
            try:
                for share in shares:
                    cursors = {stream: self._cursors[stream] for stream in share}
                    readers.append(start_reader(self._source, cursors))
                break
            except OSError as error:
                end([reader.process for reader in readers])
                for reader in readers:
                    reader.close()
                    release(reader.process)
                if not is_machine_fault(error) or attempt == self._source.storage.attempts:
                    raise Unavailable(
                        f"no process can be started to read {self._source.storage}: "
                        f"{error.strerror or error}; data.workers=0 needs none"
                    ) from error
            time.sleep(pause(attempt))
        self.processes = [reader.process for reader in readers]
        # multiprocessing would wait for them forever at exit.
        self._finalizer = weakref.finalize(self, end, self.processes)
        images = sum(len(self._source.kept[stream]) for stream in self._cursors)
        parts = received(readers, (images, *self._source.shape), self._pin)
        self._thread = Errands(parts, "read ahead")
        self._thread.ask()

    def next(self, asked: Asked) -> Part:
        while True:
            try:
                part = self._thread.result(asked, self._limit)
            except Died as error:
                self._restarts += 1
                if self._restarts > RESTARTS:
                    raise Unavailable(
                        f"the processes that read {self._source.storage} died {self._restarts} "
                        f"consecutive times ({self._fates()}): is there enough memory? "
                        "data.workers=0 takes less"
                    ) from error
                print(
                    f"warning: a process that reads {self._source.storage} died; started again",
                    file=sys.stderr,
                )
                self.close()
                self._start()
                continue
            if part is None:
                raise Unavailable(
                    f"the processes that read {self._source.storage} have sent no images for "
                    f"{self._limit:g} s (data.reader_timeout; {self._states()})"
                )
            self._restarts = 0
            self._cursors = part.cursors
            self._thread.ask()
            return part

    def _fates(self) -> str:
        """Exit statuses of the processes that ended."""
        for process in self.processes:
            process.join(timeout=1)
        ended = [p.exitcode for p in self.processes if p.exitcode is not None]
        signals = [signal.Signals(-code).name if code < 0 else f"status {code}" for code in ended]
        return ", ".join(dict.fromkeys(signals))

    def _states(self) -> str:
        return ", ".join(f"process {p.pid} {state_of(p.pid)}" for p in self.processes)

    def close(self) -> None:
        self._finalizer()
        self._thread.close()
        for process in self.processes:
            release(process)
