"""The endless stream of batches from a shard set, with an exact cursor.

    stream = ImageStream("data/digits", batch=64, streams=4, seed=0)
    batch = next(stream).to(device)          # images [64, 1, 8, 8], class_labels [64, 10]
    state = stream.state_dict()              # JSON; load_state_dict goes on at the next sample

Each logical stream is a `webdataset.DataPipeline`, told in `stages.py`. What order the images come
in is told in `order.py`, who reads them in `parts.py`, where they lie in `storage.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import webdataset

from fasttrain.data.batch import Batch
from fasttrain.data.order import Cursor, EpochOrder
from fasttrain.data.parts import Part, Source, Stage
from fasttrain.data.readers import Asked, Inline, Readers, Workers
from fasttrain.data.storage import Storage, open_storage
from fasttrain.errors import Unavailable, UserError, is_machine_fault
from fasttrain_data import DataError, Index

__all__ = ["ImageStream"]


class ImageStream:
    """Iterator of `Batch`: this rank's share of each global batch, without end.

    Args:
        path: a shard set (`fasttrain-data convert`): its folder, its URL, or a `Storage`.
        batch: images in a global batch, over all ranks; a multiple of `streams`.
        streams: logical streams, a multiple of `world_size`; at most one a shard.
        seed: of the order of images.
        rank, world_size: which contiguous block of streams to read.
        first_index: index in the run of the first image of batch 0 (`state["batches"]` adds to it).
        resolution, channels, label_dim: what the settings expect of the set; None expects nothing.
            `label_dim=0` asks for no class labels whatever the set has.
        window: records that are shuffled together within a stream.
        resampled: draw shards with replacement instead of going through all of them in an epoch.
        max_skipped: so many images may be passed over, by this rank, because they or their shards
            cannot be used; the order of the others does not change.
        workers: processes that read ahead; 0 reads when a batch is asked for. They change nothing.
        reader_timeout: seconds that a batch may take to be read before its readers count as hung.
        pin: batches lie in page-locked memory, from which a GPU copies on its own.
        stages: extra `webdataset.DataPipeline` stages over the decoded samples (see `stages.py`),
            for example `webdataset.map(flip)`. They must yield one sample for each, in order, with
            "image" of the same shape and dtype, and "cursor" and "skipped" left as they are.

    Attributes:
        skipped: images of this rank's streams passed over so far, also before a resume.
        faults: why, of those since it was last emptied.
        asked_to_stop: looked at while waiting for a batch, which then raises Stopped.

    Raises UserError, one line, when the set is missing or not what the settings ask for; while
    reading, when more than `max_skipped` images cannot be used. Raises Unavailable, one line, for
    what is the machine's fault, a server's or a hung reader's.
    """

    _readers: Readers | None = None
    asked_to_stop: Asked = staticmethod(lambda: False)

    def __init__(
        self,
        path: str | Path | Storage,
        *,
        batch: int,
        streams: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        first_index: int = 0,
        resolution: int | None = None,
        channels: int | None = None,
        label_dim: int | None = None,
        window: int = 512,
        resampled: bool = False,
        max_skipped: int = 0,
        workers: int = 0,
        reader_timeout: float = 600,
        pin: bool = False,
        stages: Sequence[Stage] = (),
    ) -> None:
        _check_division(batch, streams, seed, rank, world_size, window)
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
        _check_expectations(name, self.manifest, resolution, channels, streams, resampled)
        self.label_dim = _label_dim(name, self.manifest, label_dim)
        self.batch, self.streams, self.first_index = batch, streams, first_index
        self.world_size, self.rank = world_size, rank
        self.window, self.resampled = window, resampled
        self.max_skipped, self.workers, self.pin = max_skipped, workers, pin
        self.reader_timeout = reader_timeout
        self.faults: list[str] = []
        self._deal(seed)
        per_rank = streams // world_size
        own = range(rank * per_rank, (rank + 1) * per_rank)
        self._stages = tuple(stages)
        self._batches = 0
        self._start(dict.fromkeys(own, Cursor(0, 0)), dict.fromkeys(own, 0))

    def _deal(self, seed: int) -> None:
        self.order = EpochOrder(
            [shard.images for shard in self.manifest.shards],
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
        """What a reader of some of the streams knows."""
        return Source(
            self.storage,
            self.manifest,
            self.order,
            self.batch // self.streams,
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
        """End the processes that read ahead. The stream can still be read: others are started."""
        if self._readers is not None:
            self._readers.close()
        self._readers = None

    @property
    def skipped(self) -> int:
        return sum(self._skipped.values())

    def __iter__(self) -> ImageStream:
        return self

    def __next__(self) -> Batch:
        """Read the next batch. Raises UserError when a stage is at fault, or too many records are,
        Unavailable, Stopped; the cursor is then that of the batch before."""
        try:
            part = self._read()
        except BaseException:
            self.close()
            raise
        skipped = {stream: self._skipped[stream] + part.skipped[stream] for stream in self._skipped}
        self.faults += part.faults
        problem, count = part.error, sum(skipped.values())
        if not problem and count > max(self.max_skipped, self.skipped):  # and by this batch
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
            images=part.pixels,
            class_labels=_one_hot(part.labels, self.label_dim, self.pin),
            index=torch.arange(index, index + share, dtype=torch.int64, pin_memory=self.pin),
        )

    def give_back(self) -> None:
        """Undo the last `next`: the cursor is that of the batch before. Another rank could not read
        its share."""
        self.close()
        self._cursors, self._skipped = self._before
        self._batches -= 1

    def state_dict(self) -> dict[str, Any]:
        """The cursor after the last batch, JSON: batches so far, the order's seed, and each own
        stream's position and skipped images.

        Merge the "streams" of all ranks for a checkpoint.
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
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on at a cursor: the merged state of all ranks of any world size.

        Raises UserError when the cursor is of other streams or of another shard set.
        """
        content = state.get("content_sha256", self.manifest.content_sha256)
        if content != self.manifest.content_sha256:
            raise UserError(
                f"{self.storage} is not the shard set this run was made with: name that one, or "
                "start a new run"
            )
        if state.get("shards", self.order.layout) != self.order.layout:
            raise UserError(
                f"{self.storage} holds this run's images in other shards, so its order is another: "
                "name the set that the run was made with, or start a new run"
            )
        found: Mapping[str, Mapping[str, int]] = state["streams"]
        if set(found) != {str(stream) for stream in range(self.streams)}:
            raise UserError(
                f"the saved cursor has {len(found)} streams, the settings have {self.streams}: "
                "keep batch and norm_group when you resume a run"
            )
        self._deal(int(state.get("seed", self.order.seed)))
        cursors, skipped = {}, {}
        for stream in self._cursors:
            place = found[str(stream)]
            cursor = Cursor(place["epoch"], place["position"])
            skipped[stream] = place.get("skipped", 0)
            if min(cursor) < 0 or cursor.position >= self.order.images(cursor.epoch, stream):
                raise UserError(
                    f"the saved cursor of stream {stream} is outside the shards of {self.storage}"
                )
            cursors[stream] = cursor
        self._batches = int(state["batches"])
        self._start(cursors, skipped)


def _check_division(
    batch: int, streams: int, seed: int, rank: int, world_size: int, window: int
) -> None:
    for name, value, least in (
        ("batch", batch, 1),
        ("streams", streams, 1),
        ("seed", seed, 0),
        ("world_size", world_size, 1),
        ("window", window, 1),
    ):
        if value < least:
            raise UserError(f"{name} is {value}: it must be at least {least}")
    if batch % streams:
        raise UserError(f"batch {batch} does not divide into {streams} streams of equal size")
    if streams % world_size:
        sizes = ", ".join(str(n) for n in range(1, streams + 1) if streams % n == 0)
        raise UserError(
            f"{streams} streams do not divide over {world_size} processes: use one of {sizes}"
        )
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} is not in 0 to {world_size - 1}")


def _check_expectations(
    path: str,
    index: Index,
    resolution: int | None,
    channels: int | None,
    streams: int,
    resampled: bool,
) -> None:
    if resolution is not None and resolution != index.resolution:
        raise UserError(
            f"the images of {path} are {index.resolution}x{index.resolution}, the settings say "
            f"{resolution}x{resolution}: convert again with --resolution {resolution}"
        )
    if channels is not None and channels != index.channels:
        raise UserError(
            f"the images of {path} have {index.channels} channels, the settings say {channels}: "
            f"convert again with --channels {channels}"
        )
    if len(index.shards) < streams and not resampled:
        if index.images < streams:
            raise UserError(f"{path} has {index.images} images, fewer than the {streams} streams")
        raise UserError(
            f"{path} has {len(index.shards)} shards, fewer than the {streams} streams: "
            f"convert again with --images-per-shard {_images_per_shard(index.images, streams)}"
        )


def _images_per_shard(images: int, streams: int) -> int:
    """The most, of at most 1000, with which each stream gets equally many shards, if there is such
    a number: streams that go through unequal numbers of shards begin their epochs apart."""
    most = min(1000, images // streams)
    even = (n for n in range(most, 0, -1) if -(-images // n) % streams == 0)
    return next(even, most)


def _label_dim(path: str, index: Index, expected: int | None) -> int:
    """Width of the one-hot labels: the number of classes; 0 with one class or when not wanted."""
    found = len(index.classes) if len(index.classes) > 1 else 0
    if expected is None:
        return found
    if expected not in (0, found):
        raise UserError(
            f"{path} has {len(index.classes)} classes, the settings say label_dim {expected}: "
            f"set it to {found}" + (", or to 0 to train without labels" if found else "")
        )
    return expected


def _one_hot(labels: torch.Tensor, label_dim: int, pin: bool) -> torch.Tensor | None:
    if label_dim == 0:
        return None
    zeros = torch.zeros(len(labels), label_dim, pin_memory=pin)
    return zeros.scatter_(1, labels[:, None], 1.0)
