"""The part of a batch from some logical streams, and the endless iterator of such parts.

source = Source(storage, index, order, per_stream=16, limit=100, stages=())
part = next(source.parts({0: Cursor(0, 0), 1: Cursor(0, 0)}))        # of two streams
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
import webdataset

from fasttrain.data.mix import record_stages
from fasttrain.data.order import Cursor, Order
from fasttrain.data.patience import pause
from fasttrain.data.stages import DecodeImages, Sample
from fasttrain.data.storage import Storage
from fasttrain.system.errors import Unavailable, is_machine_fault
from fasttrain_data import DataError, Index

__all__ = ["Part", "Source", "Stage", "merged", "page_locked"]

Stage: TypeAlias = Callable[[Iterator[Sample]], Iterator[Sample]]


@dataclass(frozen=True)
class Part:
    """The images of a reader's streams in one batch, in stream order.

    Attributes:
        pixels: uint8 [n, C, H, W]; of latents the bytes of float16 (`Index.shape`).
        labels: int64 [n].
        cursors: each stream's position after them.
        skipped: number of unusable records of each stream.
        faults: their faults, each one once.
        error: reason why there are no images, in one line, or an empty string.
        again: whether another attempt may succeed: a fault of the machine, not of the data.
    """

    pixels: torch.Tensor
    labels: torch.Tensor
    cursors: dict[int, Cursor]
    skipped: dict[int, int]
    faults: tuple[str, ...] = ()
    error: str = ""
    again: bool = False


def page_locked(part: Part) -> Part:
    """The part in page-locked memory, for asynchronous copies to a GPU.

    NumPy copies, because torch would start further threads beside those that train.
    """
    pixels = torch.empty(part.pixels.shape, dtype=torch.uint8, pin_memory=True)
    np.copyto(pixels.numpy(), part.pixels.numpy())
    return replace(part, pixels=pixels)


def merged(pixels: torch.Tensor, parts: Sequence[Part]) -> Part:
    """One part from several, with their pixels in one tensor."""
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
    """Everything that a reader of a stream of batches needs.

    kept: for each of this rank's streams, its images among the `per_stream` ones of a batch. The
    others are read too, so that all ranks that read the stream skip the same unusable records.
    """

    storage: Storage
    index: Index
    order: Order
    per_stream: int
    kept: Mapping[int, range]
    limit: int
    stages: tuple[Stage, ...]

    def pipeline(
        self, stream: int, cursor: Cursor, decode: DecodeImages | None = None
    ) -> webdataset.DataPipeline:
        """The DataPipeline of one logical stream from a cursor on: endless samples."""
        return webdataset.DataPipeline(
            *record_stages(self.storage, self.index, self.order, stream, cursor),
            decode or DecodeImages(self.index, self.limit),
            *self.stages,
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of an image."""
        return self.index.shape

    def parts(self, cursors: Mapping[int, Cursor]) -> Generator[Part]:
        """The parts of some streams, from their cursors on, one for each batch; the last one has an
        `error` when reading fails.

        After a fault of the machine, reading is tried again `storage.attempts` times.
        """
        decode = DecodeImages(self.index, self.limit)
        now, failed, error = dict(cursors), 0, ""
        samples = self._samples(now, decode)
        while not error:
            again = False
            try:
                part = self._part(samples, now)
                now, failed = part.cursors, 0
            except DataError as problem:
                error = str(problem)
            except Unavailable as problem:  # its origin has tried again already
                error, again = str(problem), True
            except (OSError, MemoryError) as problem:
                failed, again = failed + 1, is_machine_fault(problem)
                if again and failed < self.storage.attempts:
                    time.sleep(pause(failed))
                    samples = self._samples(now, decode)
                    continue
                error = self._why(problem) + (f" ({failed} attempts)" if again else "")
            if error:
                part = self._no_part(now, error, again)
            yield replace(part, faults=tuple(decode.faults))
            decode.faults.clear()

    def _no_part(self, cursors: dict[int, Cursor], error: str, again: bool) -> Part:
        none = torch.empty(0, *self.shape, dtype=torch.uint8)
        labels = torch.empty(0, dtype=torch.int64)
        return Part(none, labels, cursors, dict.fromkeys(cursors, 0), (), error, again)

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

    def _part(self, samples: Mapping[int, Iterator[Sample]], cursors: Mapping[int, Cursor]) -> Part:
        now, skipped = dict(cursors), dict.fromkeys(cursors, 0)
        rows = sum(len(self.kept[stream]) for stream in now)
        pixels = np.empty((rows, *self.shape), np.uint8)
        labels = np.empty(len(pixels), np.int64)
        row, shape = 0, self.shape
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
                        f"a stage returned an image of {image.dtype} {list(image.shape)}: "
                        f"it must stay uint8 {list(shape)}"
                    )
                position += 1
                if first <= place < last:
                    pixels[row], labels[row] = image, sample["label"]
                    row += 1
            now[stream] = self.order.advance(Cursor(epoch, position), stream, 0)
        return Part(torch.from_numpy(pixels), torch.from_numpy(labels), now, skipped)
