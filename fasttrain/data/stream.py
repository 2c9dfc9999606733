"""The endless stream of batches from a shard set, with an exact cursor.

    stream = ImageStream("data/digits", batch=64, seed=0)
    batch = next(stream).to(device)          # images [64, 1, 8, 8], class_labels [64, 10]
    state = stream.state_dict()              # JSON; load_state_dict continues at the next sample

Each logical stream is a `webdataset.DataPipeline` of the stages in `stages.py`. `order.py` defines
the order of images, `parts.py` reads them, `storage.py` opens the shards.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import webdataset

from fasttrain.data import fitting
from fasttrain.data.batch import Batch
from fasttrain.data.locate import open_storage
from fasttrain.data.order import WINDOW_SIZE, Cursor, stream_count
from fasttrain.data.parts import Part, Source, Stage
from fasttrain.data.readers import Asked, Inline, Readers, Workers
from fasttrain.data.storage import Storage
from fasttrain.system.errors import Unavailable, UserError, is_machine_fault
from fasttrain_data import DataError, Index

__all__ = ["ImageStream"]


class ImageStream:
    """Endless iterator of `Batch`: this rank's part of each global batch.

    Args:
        path: a shard set (`fasttrain-data convert`): its folder, its URL, or a `Storage`.
        batch: images in a global batch, over all ranks; a multiple of `world_size`.
        streams: logical streams, a divisor of `batch`, at most the number of shards. Default: the
            choice of `order.py`, or that of the loaded cursor.
        seed: seed of the order of images.
        rank, world_size: select the contiguous block of each batch to yield.
        first_index: index in the run of the first image of batch 0 (`state["batches"]` adds to it).
        resolution, channels, label_dim: expected properties of the set; None: any. `label_dim=0`
            yields no class labels.
        window: records that are shuffled together within a stream; None: see `Storage.order`.
        resampled: draw shards with replacement instead of each one once an epoch.
        max_skipped: images that this rank may skip because they or their shards are unusable; the
            order of the others does not change.
        workers: processes that read ahead; 0: read on request. They change nothing but the time.
        reader_timeout: seconds to wait for a batch before its readers count as hung.
        pin: put batches into page-locked memory, for asynchronous copies to a GPU.
        stages: extra `webdataset.DataPipeline` stages over the decoded samples (see `stages.py`),
            for example `webdataset.map(flip)`. They must yield one sample for each, in order, with
            "image" of the same shape and dtype, and "cursor" and "skipped" unchanged.

    Attributes:
        skipped: number of skipped images of this rank's streams, including those before a resume.
            Those of a stream that several ranks read count for the first of them.
        passed_over: the same for all streams that this rank reads.
        faults: reasons, since the list was last emptied.
        asked_to_stop: polled during a wait for a batch, which then raises Stopped.

    Raises UserError, one line, when the set is missing or does not match the settings; while
    reading, when more than `max_skipped` images are unusable. Raises Unavailable, one line, for
    faults of the machine or a server, and for a hung reader.
    """

    _readers: Readers | None = None
    asked_to_stop: Asked = staticmethod(lambda: False)

    def __init__(
        self,
        path: str | Path | Storage,
        *,
        batch: int,
        streams: int | None = None,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        first_index: int = 0,
        resolution: int | None = None,
        channels: int | None = None,
        label_dim: int | None = None,
        window: int | None = WINDOW_SIZE,
        resampled: bool = False,
        max_skipped: int = 0,
        workers: int = 0,
        reader_timeout: float = 600,
        pin: bool = False,
        stages: Sequence[Stage] = (),
    ) -> None:
        fitting.check_division(batch, streams, seed, rank, world_size, window)
        try:
            self.storage = path if isinstance(path, Storage) else open_storage(path)
            self.manifest: Index = self.storage.index()
            self.storage.check(self.manifest)
        except DataError as error:
            raise UserError(str(error)) from error
        except OSError as error:
            if is_machine_fault(error):
                raise
            raise UserError(f"cannot read {path}: {error.strerror or error}") from error
        name = str(self.storage)
        shards = self.storage.most_streams(self.manifest)
        fitting.check_expectations(
            name, self.manifest, shards, resolution, channels, streams, resampled
        )
        self.label_dim = fitting.width_of_labels(name, self.manifest, label_dim)
        self.batch, self.first_index = batch, first_index
        self._wanted = streams
        self.streams = streams or stream_count(batch, self.storage.most_streams(self.manifest))
        self.world_size, self.rank = world_size, rank
        self.window, self.resampled = window, resampled
        self.max_skipped, self.workers, self.pin = max_skipped, workers, pin
        self.reader_timeout = reader_timeout
        self.faults: list[str] = []
        self._deal(seed)
        self._stages = tuple(stages)
        self._batches = 0
        self._start(dict.fromkeys(self._kept, Cursor(0, 0)), dict.fromkeys(self._kept, 0))

    def _deal(self, seed: int) -> None:
        share, each = self.batch // self.world_size, self.batch // self.streams
        first = self.rank * share
        own = range(first // each, -(-(first + share) // each))
        self._kept = {
            stream: range(max(0, first - stream * each), min(each, first + share - stream * each))
            for stream in own
        }
        self.order = self.storage.order(
            self.manifest,
            streams=self.streams,
            seed=seed,
            window=self.window,
            resampled=self.resampled,
        )

    def _start(self, cursors: dict[int, Cursor], skipped: dict[int, int]) -> None:
        self.close()
        self._cursors, self._skipped = cursors, skipped

    @property
    def source(self) -> Source:
        """The source for a reader of some of the streams."""
        return Source(
            self.storage,
            self.manifest,
            self.order,
            self.batch // self.streams,
            self._kept,
            self.max_skipped,
            self._stages,
        )

    def pipeline(self, stream: int, cursor: Cursor) -> webdataset.DataPipeline:
        """The DataPipeline of one logical stream from a cursor on: endless samples."""
        return self.source.pipeline(stream, cursor)

    def _read(self) -> Part:
        if self._readers is None:
            start, limit = (self.source, self._cursors), self.reader_timeout
            self._readers = (
                Workers(*start, self.workers, self.pin, limit)
                if self.workers
                else Inline(*start, self.pin, limit)
            )
        return self._readers.next(self.asked_to_stop)

    def close(self) -> None:
        """End the reader processes. The stream can still be read, which starts new ones."""
        if self._readers is not None:
            self._readers.close()
        self._readers = None

    @property
    def skipped(self) -> int:
        return sum(self._skipped[stream] for stream, kept in self._kept.items() if not kept.start)

    @property
    def passed_over(self) -> int:
        return sum(self._skipped.values())

    @property
    def cursors(self) -> Mapping[int, Cursor]:
        """Position of each stream that this rank reads, after the last batch."""
        return self._cursors

    def __iter__(self) -> ImageStream:
        return self

    def __next__(self) -> Batch:
        """Read the next batch. Raises UserError for a faulty stage or too many unusable records,
        Unavailable, Stopped; the cursor is then that of the batch before."""
        try:
            part = self._read()
        except BaseException:
            self.close()
            raise
        skipped = {stream: self._skipped[stream] + part.skipped[stream] for stream in self._skipped}
        self.faults += part.faults
        problem, count = part.error, sum(skipped.values())
        if not problem and count > max(self.max_skipped, self.passed_over):  # and by this batch
            problem = f"{self.faults[-1]} (images that cannot be read: {count})"
        if problem:
            self.close()
            raise (Unavailable if part.again else UserError)(problem)
        self._before = self._cursors, self._skipped
        self._cursors, self._skipped = part.cursors, skipped
        share = self.batch // self.world_size
        index = self.first_index + self._batches * self.batch + self.rank * share
        self._batches += 1
        return Batch(
            images=fitting.values_of(part.pixels, self.manifest),
            class_labels=_one_hot(part.labels, self.label_dim, self.pin),
            index=torch.arange(index, index + share, dtype=torch.int64, pin_memory=self.pin),
        )

    def give_back(self) -> None:
        """Undo the last `next`: the cursor is that of the batch before. Used when another rank
        could not read its part."""
        self.close()
        self._cursors, self._skipped = self._before
        self._batches -= 1

    def state_dict(self) -> dict[str, Any]:
        """The cursor after the last batch, JSON: batches so far, the order's seed, and each own
        stream's position and skipped images.

        Merge the "streams" of all ranks for a checkpoint; ranks that read the same one agree.
        """
        return {
            "batches": self._batches,
            "seed": self.order.seed,
            "streams": {
                str(stream): {**cursor._asdict(), "skipped": self._skipped[stream]}
                for stream, cursor in self._cursors.items()
            },
            "content_sha256": self.manifest.content_sha256,
            "shards": self.order.layout,
            **fitting.described(self.manifest, self.label_dim),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue at a cursor: the merged state of all ranks of any world size, with its number of
        streams.

        Raises UserError when the cursor does not fit the batch, or is of another shard set.
        """
        content = state.get("content_sha256", self.manifest.content_sha256)
        if content != self.manifest.content_sha256:
            raise UserError(
                f"{self.storage} is not the shard set of this run: name that one, or "
                "start a new run"
            )
        if state.get("shards", self.order.layout) != self.order.layout:
            raise UserError(
                f"{self.storage} holds this run's images in other shards, so their order differs: "
                "name the original set of the run, or start a new run"
            )
        streams: Mapping[str, Mapping[str, int]] = state["streams"]
        self._go_on_with([*streams])
        self._deal(int(state.get("seed", self.order.seed)))
        cursors, skipped = {}, {}
        for stream in self._kept:
            place = streams[str(stream)]
            cursor = Cursor(place["epoch"], place["position"])
            skipped[stream] = place.get("skipped", 0)
            if min(cursor) < 0 or cursor.position >= self.order.images(cursor.epoch, stream):
                raise UserError(
                    f"the saved cursor of stream {stream} is outside the shards of {self.storage}"
                )
            cursors[stream] = cursor
        self._batches = int(state["batches"])
        self._start(cursors, skipped)

    def _go_on_with(self, names: Sequence[str]) -> None:
        """Use the number of streams in a cursor: another number would change the order of
        images."""
        count = len(names)
        if self._wanted not in (None, count):
            raise UserError(
                f"the saved cursor has {count} streams, the settings have {self._wanted}: leave "
                "data.streams out to resume the run"
            )
        fits = count and self.batch % count == 0
        fits = fits and (self.resampled or count <= self.storage.most_streams(self.manifest))
        if not fits or set(names) != {str(stream) for stream in range(count)}:
            raise UserError(
                f"the saved cursor has {count} streams, which do not fit a batch of {self.batch} "
                f"images of {self.storage}: keep batch and data when you resume a run"
            )
        self.streams = count


def _one_hot(labels: torch.Tensor, label_dim: int, pin: bool) -> torch.Tensor | None:
    if label_dim == 0:
        return None
    zeros = torch.zeros(len(labels), label_dim, pin_memory=pin)
    return zeros.scatter_(1, labels[:, None], 1.0)
