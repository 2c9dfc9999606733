"""Reading ahead of training: each reader has some of a rank's logical streams, and yields its part
of every batch. Readers are processes, or this one.

    readers = Workers(source, cursors, count=2)          # or Inline(source, cursors)
    part = readers.next()                # of all their streams, in stream order
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.util import get_temp_dir
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import webdataset
from torch.utils.data import DataLoader, IterableDataset

from fasttrain.data.order import Cursor, EpochOrder
from fasttrain.data.stages import DecodeImages, ReadShards, Sample, ShardList, ShuffleWindows
from fasttrain.data.storage import Storage
from fasttrain_data import DataError, Index
from fasttrain_data.pool import die_with_parent

__all__ = ["Inline", "Part", "Readers", "Source", "Stage", "Workers"]

Stage = Callable[[Iterator[Sample]], Iterator[Sample]]
Taken: TypeAlias = "futures.Future[Part]"
RESTARTS = 3


@dataclass(frozen=True)
class Part:
    """The images that a reader's streams give to one batch, in stream order.

    Attributes:
        pixels: uint8 [n, C, H, W].
        labels: int64 [n].
        cursors: each stream's place after them.
        skipped: for each stream, how many records could not be used on the way.
        faults: what was wrong with those, each thing once.
        error: why there is no part, in one line, or an empty string.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    cursors: dict[int, Cursor]
    skipped: dict[int, int]
    faults: tuple[str, ...] = ()
    error: str = ""


def joined(parts: Sequence[Part], pin: bool) -> Part:
    """The parts of one batch as one, in page-locked memory with `pin`.

    NumPy copies: a thread of torch's would start threads of its own beside those that train.
    """
    if len(parts) == 1 and not pin:
        return parts[0]
    shape = (sum(len(part.pixels) for part in parts), *parts[0].pixels.shape[1:])
    pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
    np.concatenate([part.pixels.numpy() for part in parts], out=pixels.numpy())
    return Part(
        pixels,
        torch.from_numpy(np.concatenate([part.labels.numpy() for part in parts])),
        {stream: place for part in parts for stream, place in part.cursors.items()},
        {stream: count for part in parts for stream, count in part.skipped.items()},
        tuple(fault for part in parts for fault in part.faults),
        next((part.error for part in parts if part.error), ""),
    )


@dataclass(frozen=True)
class Source:
    """What every reader of a stream of batches knows.

    kept: of each of this rank's streams, which of its `per_stream` images of a batch are this
    rank's. The others are read too: what cannot be used is passed over alike by all ranks that read
    the stream.
    """

    storage: Storage
    index: Index
    order: EpochOrder
    per_stream: int
    kept: Mapping[int, range]
    limit: int
    stages: tuple[Stage, ...]

    def pipeline(
        self, stream: int, cursor: Cursor, decode: DecodeImages | None = None
    ) -> webdataset.DataPipeline:
        """The DataPipeline of one logical stream from a cursor on: endless samples."""
        return webdataset.DataPipeline(
            ShardList(self.order, stream, cursor),
            ReadShards(self.storage, self.index),
            ShuffleWindows(self.order, stream, cursor),
            decode or DecodeImages(self.index, self.limit),
            *self.stages,
        )

    def parts(self, cursors: Mapping[int, Cursor]) -> Iterator[Part]:
        """The parts of some streams, from their cursors on, one for each batch; the last has an
        `error` when they cannot go on."""
        decode = DecodeImages(self.index, self.limit)
        samples = {s: iter(self.pipeline(s, cursor, decode)) for s, cursor in cursors.items()}
        now = dict(cursors)
        shape = (self.index.channels, self.index.resolution, self.index.resolution)
        rows = sum(len(self.kept[stream]) for stream in now)
        while True:
            pixels = np.empty((rows, *shape), np.uint8)
            labels = np.empty(len(pixels), np.int64)
            skipped = dict.fromkeys(now, 0)
            error = ""
            try:
                self._fill(samples, now, skipped, pixels, labels)
            except DataError as problem:
                error = str(problem)
            except OSError as problem:
                error = f"cannot read shards of {self.storage}: {problem}"
            yield Part(
                torch.from_numpy(pixels),
                torch.from_numpy(labels),
                dict(now),
                skipped,
                tuple(decode.faults),
                error,
            )
            decode.faults.clear()
            if error:
                return

    def _fill(
        self,
        samples: Mapping[int, Iterator[Sample]],
        now: dict[int, Cursor],
        skipped: dict[int, int],
        pixels: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
    ) -> None:
        row, shape = 0, pixels.shape[1:]
        for stream, source in samples.items():
            epoch, position = now[stream]
            images = self.order.images(epoch, stream)
            first, last = self.kept[stream].start, self.kept[stream].stop
            for place in range(self.per_stream):
                sample = next(source, {})
                if over := sample.get("skipped", 0):
                    skipped[stream] += over
                    position += over
                if position >= images:
                    epoch, position = self.order.advance(Cursor(epoch, position), stream, 0)
                    images = self.order.images(epoch, stream)
                if sample.get("cursor") != (epoch, position):
                    raise DataError(
                        "a stage dropped, added or reordered samples: stages must yield one for "
                        "each, in order, with their cursor and skipped"
                    )
                image = sample["image"]
                if image.shape != shape or image.dtype != pixels.dtype:
                    raise DataError(
                        f"a stage made an image of {image.dtype} {list(image.shape)}: "
                        f"it must stay uint8 {list(shape)}"
                    )
                position += 1
                if first <= place < last:
                    pixels[row], labels[row] = image, sample["label"]
                    row += 1
            now[stream] = self.order.advance(Cursor(epoch, position), stream, 0)


class Readers(Protocol):
    """Whoever reads a rank's streams."""

    def next(self) -> Part:
        """What all of them give to the next batch."""

    def close(self) -> None:
        """Let go of everything; the readers are not used again."""


class Inline:
    """This process reads, when it is asked."""

    def __init__(self, source: Source, cursors: Mapping[int, Cursor], pin: bool) -> None:
        self._parts, self._pin = source.parts(cursors), pin

    def next(self) -> Part:
        return joined([next(self._parts)], self._pin)

    def close(self) -> None:
        self._parts.close()  # type: ignore[attr-defined]


class Workers:
    """Processes of a torch DataLoader read ahead, each a contiguous block of the streams.

    A thread takes the next batch's parts from them, and joins them, while training goes on: that
    takes this process a millisecond for each of them.

    A process that is killed is missed within seconds: all are then started anew from the cursors of
    the last batch, so that nothing is lost or repeated.
    """

    def __init__(
        self, source: Source, cursors: Mapping[int, Cursor], count: int, pin: bool
    ) -> None:
        self._source, self._cursors, self._pin = source, dict(cursors), pin
        self._count = min(count, len(cursors))
        self._restarts = 0
        self._start()

    def _start(self) -> None:
        streams = list(self._cursors)
        shares = [list(map(int, share)) for share in np.array_split(streams, self._count)]
        cursors = [{stream: self._cursors[stream] for stream in share} for share in shares]
        before = set(multiprocessing.active_children())
        # Forked processes have this folder too; a killed one would leave one of its own. Cleaners
        # of /tmp remove it in long runs, and without it a process sends nothing, in silence.
        os.makedirs(get_temp_dir(), mode=0o700, exist_ok=True)
        with _own_signals():
            loader = DataLoader(
                _Dataset(self._source, cursors),
                batch_size=None,
                num_workers=self._count,
                collate_fn=_as_it_is,
                worker_init_fn=_Begin(os.getpid()),
                prefetch_factor=2,
                multiprocessing_context="fork",
            )
            parts: Iterator[Part] = iter(loader)
        self.processes = [p for p in multiprocessing.active_children() if p not in before]
        self._wanted: SimpleQueue[Taken | None] = SimpleQueue()
        # They heed no SIGTERM, and multiprocessing would wait for them at exit for ever.
        self._finalizer = weakref.finalize(self, _end, self.processes, self._wanted)
        self._thread = Thread(
            target=_take,
            args=(parts, self._count, self._pin, self._wanted),
            name="read ahead",
            daemon=True,
        )
        self._thread.start()
        self._ask()

    def _ask(self) -> None:
        self._ahead: Taken = futures.Future()
        self._wanted.put(self._ahead)

    def next(self) -> Part:
        while True:
            try:
                part = self._ahead.result()
            except (RuntimeError, OSError, EOFError) as error:
                if not wait([process.sentinel for process in self.processes], timeout=1):
                    raise  # of a user's stage: all of them live
                self._restarts += 1
                if self._restarts > RESTARTS:
                    raise DataError(
                        f"the processes that read {self._source.storage} died {self._restarts} "
                        f"times in a row ({' '.join(str(error).split())}): is there enough memory, "
                        "also in /dev/shm? data.workers=0 takes less"
                    ) from error
                print(
                    f"warning: a process that reads {self._source.storage} died; started anew",
                    file=sys.stderr,
                )
                self.close()
                self._start()
                continue
            self._restarts = 0
            self._cursors = part.cursors
            self._ask()
            return part

    def close(self) -> None:
        # The thread would miss killed processes only within seconds, and keep their DataLoader, of
        # which processes that are forked next should know nothing.
        futures.wait([self._ahead], timeout=1)
        self._finalizer()
        self._thread.join(timeout=1)


def _take(parts: Iterator[Part], count: int, pin: bool, wanted: SimpleQueue[Taken | None]) -> None:
    """A thread's work: the joined parts of a batch for each future that comes, until None does."""
    while (future := wanted.get()) is not None:
        try:
            future.set_result(joined([next(parts) for _ in range(count)], pin))
        except BaseException as error:
            future.set_exception(error.with_traceback(None))  # its frames would keep `parts` alive


def _end(processes: Sequence[Any], wanted: SimpleQueue[Taken | None]) -> None:
    for process in processes:
        process.kill()
    for process in processes:
        process.join()
    wanted.put(None)


class _Dataset(IterableDataset[Part]):
    def __init__(self, source: Source, cursors: Sequence[Mapping[int, Cursor]]) -> None:
        self.source, self.cursors = source, cursors

    def __iter__(self) -> Iterator[Part]:
        info = torch.utils.data.get_worker_info()
        assert info is not None
        return self.source.parts(self.cursors[info.id])


@dataclass(frozen=True)
class _Begin:
    """What a reader does first: a launcher's SIGTERM and Ctrl-C reach the whole group, and the main
    process still needs its images until it has made its checkpoint."""

    parent: int

    def __call__(self, _: int) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        die_with_parent(self.parent)


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep torch's SIGCHLD handler out: it raises in the middle of whatever runs, a checkpoint for
    one. Without it DataLoader looks after its processes every few seconds."""
    try:
        handler = signal.getsignal(signal.SIGCHLD)
        yield
        signal.signal(signal.SIGCHLD, handler)
    except ValueError:  # not the main thread: torch has set none either
        pass


def _as_it_is(part: Any) -> Any:
    return part
