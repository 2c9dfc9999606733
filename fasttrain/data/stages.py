"""The stages of a stream's `webdataset.DataPipeline`, in the order in which they run.

    shard list -> read and decode -> shuffle windows -> the user's own stages

A sample is a dict as in WebDataset: "__key__" (str), "image" (uint8 [C, H, W], read-only), "label"
(int), and "cursor" (its place in the stream, which the stages must pass on).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from fasttrain.data.order import Cursor, EpochOrder
from fasttrain_data import DataError, Index, ShardInfo, decode_record, open_shard, read_records

__all__ = ["ReadShards", "Sample", "ShardCache", "ShardList", "ShuffleWindows"]

Sample: TypeAlias = dict[str, Any]


class ShardList:
    """Source stage: the shards of one stream from a cursor on, epoch after epoch without end.

    Yields {"epoch", "shard", "skip"}: the shard's number, and how many of its records come before
    the window that holds the cursor. Shards that lie before it are not opened.
    """

    def __init__(self, order: EpochOrder, stream: int, cursor: Cursor) -> None:
        self.order, self.stream, self.cursor = order, stream, cursor

    def __call__(self) -> Iterator[dict[str, int]]:
        epoch, position = self.cursor
        skip = position - position % self.order.window
        while True:
            for shard in self.order.shards(epoch, self.stream):
                images = self.order.shard_images[shard]
                if skip >= images:
                    skip -= images
                    continue
                yield {"epoch": epoch, "shard": shard, "skip": skip}
                skip = 0
            epoch, skip = epoch + 1, 0


class ShardCache:
    """Decoded shards in memory, up to a number of bytes, shared by the streams of a rank.

    Small sets are read again every epoch. Shards are kept in the order in which they came and never
    dropped: with a cyclic scan, dropping the oldest would always drop what is needed next.
    """

    def __init__(self, capacity: int) -> None:
        self.free = capacity
        self._shards: dict[int, tuple[list[str], npt.NDArray[np.uint8], list[int]]] = {}

    def reserve(self, size: int) -> bool:
        """Set `size` bytes aside for a shard when they fit."""
        if size > self.free:
            return False
        self.free -= size
        return True

    def get(self, shard: int) -> tuple[list[str], npt.NDArray[np.uint8], list[int]] | None:
        return self._shards.get(shard)

    def put(
        self, shard: int, keys: list[str], images: npt.NDArray[np.uint8], labels: list[int]
    ) -> None:
        self._shards[shard] = keys, images, labels


class ReadShards:
    """Stage: shards to decoded samples, through the safe reader.

    The size of a shard is checked whenever it is opened, its SHA-256 when it is read for the first
    time. Raises DataError, OSError.
    """

    def __init__(self, folder: Path, index: Index, cache: ShardCache) -> None:
        self.folder, self.index, self.cache = folder, index, cache
        self._hashed: set[int] = set()

    def __call__(self, source: Iterator[dict[str, int]]) -> Iterator[Sample]:
        for item in source:
            shard, skip = item["shard"], item["skip"]
            cached = self._cached(shard)
            rows = self._stream(shard, skip) if cached is None else _tail(cached, skip)
            for key, image, label in rows:
                yield {"__key__": key, "image": image, "label": label, "epoch": item["epoch"]}

    def _cached(self, shard: int) -> tuple[list[str], npt.NDArray[np.uint8], list[int]] | None:
        """The whole shard from memory, decoded into it now when there is room."""
        found = self.cache.get(shard)
        if found is not None:
            return found
        info = self.index.shards[shard]
        shape = (info.images, self.index.channels, self.index.resolution, self.index.resolution)
        size = int(np.prod(shape, dtype=np.int64))
        # A hostile index cannot make this allocate: deflate packs 1032 to 1 at best.
        if size > 1100 * info.bytes or not self.cache.reserve(size):
            return None
        images = np.empty(shape, dtype=np.uint8)
        keys, labels = [], []
        for row, (key, image, label) in enumerate(self._stream(shard, 0)):
            images[row] = image
            keys.append(key)
            labels.append(label)
        images.flags.writeable = False
        self.cache.put(shard, keys, images, labels)
        return keys, images, labels

    def _stream(self, shard: int, skip: int) -> Iterator[tuple[str, npt.NDArray[np.uint8], int]]:
        """Decode a shard's records one at a time from `skip` on, in constant memory."""
        info: ShardInfo = self.index.shards[shard]
        name = str(self.folder / info.name)
        count = 0
        with open_shard(self.folder, info, check_hash=shard not in self._hashed) as file:
            self._hashed.add(shard)
            for record in read_records(file, name=name):
                count += 1
                if count > info.images:
                    break
                if count > skip:
                    pixels = decode_record(record, self.index, name=name)
                    yield record.key, pixels.transpose(2, 0, 1), record.label
        if count != info.images:
            raise DataError(
                f"{name} has {'more' if count > info.images else 'fewer'} images than the "
                f"{info.images} of its index: convert the set again"
            )


def _tail(
    shard: tuple[list[str], npt.NDArray[np.uint8], list[int]], skip: int
) -> Iterator[tuple[str, npt.NDArray[np.uint8], int]]:
    keys, images, labels = shard
    return zip(keys[skip:], images[skip:], labels[skip:], strict=True)


class ShuffleWindows:
    """Stage: permute each window of consecutive records of an epoch, and stamp the cursor.

    After a resume the first window is read whole and the samples before the cursor are dropped, so
    the stream goes on with the very next sample.
    """

    def __init__(self, order: EpochOrder, stream: int, cursor: Cursor) -> None:
        self.order, self.stream, self.cursor = order, stream, cursor

    def __call__(self, source: Iterator[Sample]) -> Iterator[Sample]:
        order, stream = self.order, self.stream
        epoch, position = self.cursor
        while True:
            block, drop = divmod(position, order.window)
            start = block * order.window
            size = min(order.window, order.images(epoch, stream) - start)
            window = [next(source) for _ in range(size)]
            permuted = order.window_order(epoch, stream, block, size).tolist()
            for offset in range(drop, size):
                sample = window[permuted[offset]]
                if sample.pop("epoch") != epoch:
                    raise DataError("a shard holds another number of images than its index says")
                sample["cursor"] = Cursor(epoch, start + offset)
                yield sample
            position = start + size
            if position >= order.images(epoch, stream):
                epoch, position = epoch + 1, 0
