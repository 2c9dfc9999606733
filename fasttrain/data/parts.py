"""What some logical streams give to one batch, and the endless iterator of such parts.

source = Source(storage, index, order, per_stream=16, limit=100, stages=())
part = next(source.parts({0: Cursor(0, 0), 1: Cursor(0, 0)}))        # of two streams
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
import webdataset

from fasttrain.data.order import Cursor, EpochOrder
from fasttrain.data.patience import pause
from fasttrain.data.stages import DecodeImages, ReadShards, Sample, ShardList, ShuffleWindows
from fasttrain.data.storage import Storage
from fasttrain.errors import Unavailable, is_machine_fault
from fasttrain_data import DataError, Index

__all__ = ["Part", "Source", "Stage", "joined", "merged"]

Stage: TypeAlias = Callable[[Iterator[Sample]], Iterator[Sample]]


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
        again: whether that may be gone the next time: the machine is at fault, not the data.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    cursors: dict[int, Cursor]
    skipped: dict[int, int]
    faults: tuple[str, ...] = ()
    error: str = ""
    again: bool = False


def joined(parts: Sequence[Part], pin: bool) -> Part:
    """The parts of one batch as one, in page-locked memory with `pin`.

    NumPy copies: a thread of torch's would start threads of its own beside those that train.
    """
    if len(parts) == 1 and not pin:
        return parts[0]
    shape = (sum(len(part.pixels) for part in parts), *parts[0].pixels.shape[1:])
    pixels = torch.empty(shape, dtype=torch.uint8, pin_memory=pin)
    np.concatenate([part.pixels.numpy() for part in parts], out=pixels.numpy())
    return merged(pixels, parts)


def merged(pixels: torch.Tensor, parts: Sequence[Part]) -> Part:
    """Parts as one, whose pixels lie in one tensor."""
    bad = next((part for part in parts if part.error), None)
    return Part(
        pixels,
        torch.from_numpy(np.concatenate([part.labels.numpy() for part in parts])),
        {stream: place for part in parts for stream, place in part.cursors.items()},
        {stream: count for part in parts for stream, count in part.skipped.items()},
        tuple(fault for part in parts for fault in part.faults),
        bad.error if bad else "",
        bad.again if bad else False,
    )


@dataclass(frozen=True)
class Source:
    """What every reader of a stream of batches knows."""

    storage: Storage
    index: Index
    order: EpochOrder
    per_stream: int
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

    @property
    def shape(self) -> tuple[int, int, int]:
        """Of an image."""
        return (self.index.channels, self.index.resolution, self.index.resolution)

    def parts(self, cursors: Mapping[int, Cursor]) -> Generator[Part]:
        """The parts of some streams, from their cursors on, one for each batch; the last has an
        `error` when they cannot go on.

        What is the machine's fault is tried `storage.attempts` times, from the last batch on.
        """
        decode = DecodeImages(self.index, self.limit)
        now, failed = dict(cursors), 0
        samples = self._samples(now, decode)
        while True:
            after, skipped, error, again = dict(now), dict.fromkeys(now, 0), "", False
            pixels = np.empty((len(now) * self.per_stream, *self.shape), np.uint8)
            labels = np.empty(len(pixels), np.int64)
            try:
                self._fill(samples, after, skipped, pixels, labels)
                failed = 0
            except DataError as problem:
                error = str(problem)
            except Unavailable as problem:  # was tried often enough
                error, again = str(problem), True
            except (OSError, MemoryError) as problem:
                failed, again = failed + 1, is_machine_fault(problem)
                error = self._why(problem)
                if again and failed < self.storage.attempts:
                    time.sleep(pause(failed))
                    samples = self._samples(now, decode)
                    continue
                if again:
                    error += f" ({failed} attempts)"
            now = after
            yield Part(
                torch.from_numpy(pixels),
                torch.from_numpy(labels),
                dict(now),
                skipped,
                tuple(decode.faults),
                error,
                again,
            )
            decode.faults.clear()
            if error:
                return

    def _samples(
        self, cursors: Mapping[int, Cursor], decode: DecodeImages
    ) -> dict[int, Iterator[Sample]]:
        return {s: iter(self.pipeline(s, cursor, decode)) for s, cursor in cursors.items()}

    def _why(self, problem: OSError | MemoryError) -> str:
        if isinstance(problem, MemoryError):
            return f"not enough memory to read {self.storage}"
        if problem.filename is None:
            return f"cannot read shards of {self.storage}: {problem}"
        return f"cannot read {problem.filename}: {problem.strerror}"

    def _fill(
        self,
        samples: Mapping[int, Iterator[Sample]],
        now: dict[int, Cursor],
        skipped: dict[int, int],
        pixels: npt.NDArray[np.uint8],
        labels: npt.NDArray[np.int64],
    ) -> None:
        row, shape = 0, self.shape
        for stream, source in samples.items():
            epoch, position = now[stream]
            images = self.order.images(epoch, stream)
            for _ in range(self.per_stream):
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
                pixels[row], labels[row] = image, sample["label"]
                position += 1
                row += 1
            now[stream] = self.order.advance(Cursor(epoch, position), stream, 0)
