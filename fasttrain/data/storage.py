"""Storage of a shard set: a folder, or anything that fsspec opens (`https://`, `s3://`, ...).

    storage = open_storage("https://example.org/imagenet64")
    index = storage.index()
    with storage.open(index.shards[0]) as file: ...

Remote shards are downloaded whole, each as one stream of bytes, into the folder of `cache.py`.
After a broken connection only the rest is requested.
"""

from __future__ import annotations

import errno
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from fasttrain.data.cache import Hashes
from fasttrain.data.order import WINDOW_SIZE, EpochOrder, Order
from fasttrain.data.patience import patiently
from fasttrain_data import (
    DataError,
    Index,
    Record,
    ShardInfo,
    decode_record,
    load_index,
    open_shard,
    read_records,
)
from fasttrain_data.index import check_shard_file

__all__ = ["FolderStorage", "Storage"]


class Storage(ABC):
    """A shard set in some place.

    attempts: consecutive failures of the machine or the network before reading fails.
    """

    attempts = 5

    @abstractmethod
    def index(self) -> Index:
        """The set's index. Raises DataError when it is missing or not valid."""

    @abstractmethod
    def name(self, shard: ShardInfo) -> str:
        """Name of a shard in messages."""

    @abstractmethod
    def open(self, shard: ShardInfo) -> AbstractContextManager[BinaryIO]:
        """A shard's bytes, with the size in the index. Its SHA-256 is checked when this process
        opens it for the first time, or for the first time after a change.

        Raises DataError for a wrong shard, Unavailable for a server that does not answer, OSError.
        """

    def records(self, file: BinaryIO, shard: ShardInfo, index: Index) -> Iterator[Record]:
        """The records of an open shard, in order. Raises DataError."""
        return read_records(file, index, name=self.name(shard))

    def images(self, shard: ShardInfo, index: Index) -> Iterator[npt.NDArray[np.uint8]]:
        """The images of a shard, uint8 [H, W, C], in order. Raises what `open` does."""
        with self.open(shard) as file:
            for record in self.records(file, shard, index):
                yield decode_record(record, index, name=self.name(shard))

    def class_shares(self, index: Index) -> list[float]:
        """Share of each class in the images that are trained on."""
        return [info.images / index.images for info in index.classes]

    def sample(self, index: Index) -> npt.NDArray[np.bool_]:
        """Which images, bool [index.images], are a sample of what is trained on: all."""
        return np.ones(index.images, dtype=np.bool_)

    def most_streams(self, index: Index) -> int:
        """Of logical streams that each have a shard of their own."""
        return len(index.shards)

    def order(
        self, index: Index, *, streams: int, seed: int, window: int | None, resampled: bool
    ) -> Order:
        """The order in which images come. window: None for one stream whose first images must be
        a sample of the set, as those of shuffled shards are in any window."""
        counts, window = [shard.images for shard in index.shards], window or WINDOW_SIZE
        return EpochOrder(counts, streams=streams, seed=seed, window=window, resampled=resampled)

    def will_need(self, shard: ShardInfo) -> None:  # noqa: B027
        """Prepare a shard that will be opened soon, in the background if that takes long."""

    def check(self, index: Index) -> None:  # noqa: B027
        """Raise DataError when shards are visibly missing."""


class FolderStorage(Storage):
    """A folder of this machine, or mounted on it."""

    def __init__(self, folder: Path, attempts: int = Storage.attempts) -> None:
        self.folder, self.attempts = folder, attempts
        self._hashes = Hashes()

    def __str__(self) -> str:
        return str(self.folder)

    def index(self) -> Index:
        return patiently(lambda: load_index(self.folder), self.attempts, self.folder)

    def name(self, shard: ShardInfo) -> str:
        return str(self.folder / shard.name)

    @contextmanager
    def open(self, shard: ShardInfo) -> Iterator[BinaryIO]:
        try:
            (self.folder / shard.name).stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            # It existed at the start (`check`): the folder or its mount has disappeared.
            raise OSError(errno.ESTALE, "it does not exist any more", self.name(shard)) from error
        with open_shard(self.folder, shard, check_hash=False) as file:
            if not self._hashes.right(file, shard.sha256):
                raise DataError(
                    f"{self.name(shard)} does not have the SHA-256 of its index: {shard.remedy}"
                )
            yield file

    def check_shard(self, shard: ShardInfo) -> None:
        """Raise DataError unless a shard is there, of its size."""
        check_shard_file(self.folder / shard.name, shard)

    def check(self, index: Index) -> None:
        patiently(lambda: index.check_files(self.folder), self.attempts, self.folder)
