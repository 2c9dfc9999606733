"""WebDataset's tars as others write them, read as they are by an index that `fasttrain-data index`
has made: order, cursor, skipping and hashes are those of a shard set.

    storage = TarStorage("sets/cats-{000..146}.tar", Remote(), View(resolution=64, channels=3))
    index = storage.index()
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from fasttrain.data.order import Cursor, Order, ScatteredOrder
from fasttrain.data.patience import patiently
from fasttrain.data.remote import Remote, RemoteStorage
from fasttrain.data.stages import Sample, fault_of
from fasttrain.data.storage import FolderStorage, Storage
from fasttrain_data import DataError, Index, Record, ShardInfo
from fasttrain_data.fetching import is_url
from fasttrain_data.images import Crop
from fasttrain_data.index import INDEX_NAME
from fasttrain_data.tar_index import TarIndex, TarInfo, load_tar_index, parse_tar_index, read_rows
from fasttrain_data.tars import Tars, index_folders, parts_of, quoted

__all__ = ["ReadScattered", "TarStorage", "View"]


SPREAD, SPREAD_BYTES = 64, 16 << 30
"""Tars whose images are scattered at a time, and their size: each is hashed, and downloaded, as a
whole, and has to stay in the cache meanwhile."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What is made of images that have any size; see `fasttrain_data.images.Wanted`.

    Attributes:
        resolution, channels: None where nobody has said.
    """

    resolution: int | None = None
    channels: int | None = None
    crop: Crop = "center"


class TarStorage(Storage):
    """Tars wherever they are, in the order of their index.

    spec: as `fasttrain_data.tars` has it.
    index_at: folder or URL of the index; where `fasttrain-data index` puts it when not given.
    """

    def __init__(
        self, spec: str, remote: Remote, view: View, index_at: str | Path | None = None
    ) -> None:
        self.spec, self.view, self.attempts = spec, view, remote.attempts
        self._remote, self._index_at = remote, index_at
        self._inner: dict[str, FolderStorage | RemoteStorage] = {}
        self._places: dict[str, str] = {}
        self._index: TarIndex | None = None
        self._records: FolderStorage | RemoteStorage | None = None

    def __str__(self) -> str:
        return self.spec

    def index(self) -> Index:
        """The view of the index. Raises DataError when there is none, or it is of other tars."""
        index, where = self._load()
        names = [*(info.name for info in index.shards), *index.empty]
        tars = self._tars(names)
        self._places = dict(zip(tars.names, tars.places, strict=True))
        other = set(self._places).symmetric_difference(names)
        if other:
            name = min(other)
            what = f"{name} is not there any more" if name in names else f"{name} is new"
            raise DataError(
                f"{self.spec} is not what its index {where} was made of: {what}; put it right, or "
                f"run `fasttrain-data index --force {quoted(self.spec)}`"
            )
        if self.view.resolution is None or self.view.channels is None:
            raise DataError(
                f"the images of {self.spec} have sizes of their own: say which to make with "
                "data.resolution"
            )
        # Of odd EXIF data and the like: here images are refused or accepted.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        return index.view(
            resolution=self.view.resolution, channels=self.view.channels, crop=self.view.crop
        )

    def _load(self) -> tuple[TarIndex, str]:
        """The index and where it is; it is read once."""
        if self._index is not None and self._records is not None:
            return self._index, str(self._records)
        folders = index_folders(self.spec) if self._index_at is None else [self._index_at]
        for folder in folders:
            if is_url(folder):
                remote = RemoteStorage(str(folder), self._remote)
                name = f"{remote.url}/{INDEX_NAME}"
                index = parse_tar_index(remote.text(INDEX_NAME), name)
                self._index, self._records = index, remote
                return index, str(folder)
            path = Path(folder)
            found = patiently(partial(load_tar_index, path), self.attempts, path)
            if found is not None:
                self._index, self._records = found, FolderStorage(path, self.attempts)
                return found, str(path)
        raise DataError(
            f"{self.spec} has no index in {folders[0]}: make it once with "
            f"`fasttrain-data index {quoted(self.spec)}`"
        )

    def _tars(self, names: list[str]) -> Tars:
        """The tars that are named now. What is behind a URL without names is as the index says."""
        if len(parts_of(self.spec)) == 1 and is_url(self.spec) and ".tar" not in self.spec:
            places = tuple(f"{self.spec.rstrip('/')}/{name}" for name in names)
            return Tars(self.spec, places, tuple(names))
        return Tars.of(self.spec)

    def _of(self, shard: ShardInfo) -> tuple[FolderStorage | RemoteStorage, ShardInfo]:
        """The folder or server of a tar, and the tar as it is called there."""
        folder, _, name = self._places[shard.name].rpartition("/")
        if folder not in self._inner:
            self._inner[folder] = (
                RemoteStorage(folder, self._remote)
                if is_url(folder)
                else FolderStorage(Path(folder or "/"), self.attempts)
            )
        return self._inner[folder], shard.model_copy(update={"name": name})

    def name(self, shard: ShardInfo) -> str:
        return self._places[shard.name]

    @contextmanager
    def open(self, shard: ShardInfo) -> Iterator[BinaryIO]:
        inner, info = self._of(shard)
        with inner.open(info) as file:
            yield file

    def records(self, file: BinaryIO, shard: ShardInfo, index: Index) -> Iterator[Record]:
        for key, row in zip(*self.rows(shard), strict=True):
            yield self.record(file, shard, key, row)

    def rows(self, shard: ShardInfo) -> tuple[list[str], list[tuple[int, int, int]]]:
        """Key, and offset, size and label, of each record of a tar. Raises DataError."""
        assert isinstance(shard, TarInfo)
        assert self._index is not None
        assert self._records is not None
        with self._records.open(self._index.records) as records:
            rows, keys = read_rows(records, shard)
        return keys, rows.tolist()

    def record(
        self, file: BinaryIO, shard: ShardInfo, key: str, row: tuple[int, int, int]
    ) -> Record:
        """One record of an open tar. Raises DataError."""
        offset, size, label = row
        file.seek(offset)
        data = file.read(size)
        if len(data) != size:
            raise DataError(f"{self.name(shard)} is cut short: {shard.remedy}")
        return Record(key, data, label)

    def order(
        self, index: Index, *, streams: int, seed: int, window: int | None, resampled: bool
    ) -> Order:
        """Nobody has shuffled these tars: a sample of them takes images of many at a time."""
        if window is None:
            counts = [shard.images for shard in index.shards]
            remote = any(is_url(self._places[shard.name]) for shard in index.shards)
            room = min(SPREAD_BYTES, self._remote.cache_bytes // 2) if remote else SPREAD_BYTES
            spread = room // max(shard.bytes for shard in index.shards)
            return ScatteredOrder(counts, seed=seed, spread=max(1, min(SPREAD, spread)))
        how: dict[str, Any] = {"seed": seed, "window": window, "resampled": resampled}
        return super().order(index, streams=streams, **how)

    def will_need(self, shard: ShardInfo) -> None:
        inner, info = self._of(shard)
        inner.will_need(info)

    def check(self, index: Index) -> None:
        def look() -> None:
            for shard in index.shards:
                inner, info = self._of(shard)
                if isinstance(inner, FolderStorage):
                    inner.check_shard(info)

        patiently(look, self.attempts, self.spec)


class ReadScattered:
    """Source stage: the records of tars in a `ScatteredOrder` from a cursor on, endless, as
    `ShuffleWindows` yields them. It keeps the rows of the tars of one group."""

    def __init__(
        self, storage: TarStorage, index: Index, order: ScatteredOrder, cursor: Cursor
    ) -> None:
        self.storage, self.index, self.order, self.cursor = storage, index, order, cursor

    def __call__(self) -> Iterator[Sample]:
        epoch, position = self.cursor
        while True:
            for first, shards in self.order.groups(epoch):
                tars = [self.index.shards[shard] for shard in shards]
                ends = np.cumsum([tar.images for tar in tars])
                numbers = self.order.window_order(epoch, 0, first, int(ends[-1]))
                known: dict[str, Any] = {}
                for number in numbers[max(0, position - first) :].tolist():
                    tar = int(np.searchsorted(ends, number, side="right"))
                    place = number - int(ends[tar])  # counted from its end
                    sample = self._read(tars[tar], place, known)
                    yield {**sample, "cursor": Cursor(epoch, position)}
                    position += 1
            epoch, position = epoch + 1, 0

    def _read(self, tar: ShardInfo, place: int, known: dict[str, Any]) -> Sample:
        """A record of a tar. known: by tar its rows, or why it has none, which took a read."""
        name, storage = self.storage.name(tar), self.storage
        if isinstance(known.get(tar.name), str):
            return {"fault": known[tar.name]}
        try:
            with storage.open(tar) as file:
                if tar.name not in known:
                    known[tar.name] = storage.rows(tar)
                keys, rows = known[tar.name]
                record = storage.record(file, tar, keys[place], rows[place])
        except (DataError, OSError) as error:
            known[tar.name] = fault_of(error, name)
            return {"fault": known[tar.name]}
        return {"record": record, "shard": name}
