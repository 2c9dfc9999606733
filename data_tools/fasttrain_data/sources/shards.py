"""Another shard set as a source: to change what it is stored as, its size, or to cut it in two."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError, shown
from fasttrain_data.images import BadImage
from fasttrain_data.index import Index, load_index
from fasttrain_data.permutation import SPLIT, permutation
from fasttrain_data.reader import Record, decode_record, open_shard, read_records
from fasttrain_data.records import ENDINGS
from fasttrain_data.sources.base import ArraySource, Span, allow_files, read_span
from fasttrain_data.sources.place import DATASET_JSON, Place
from fasttrain_data.sources.recovery import recovered_index
from fasttrain_data.tar import scan

__all__ = ["Part", "ShardSource"]


class Part:
    """Which part of a set: of each class the first round(share * images) of a seeded order, or the
    rest. Copies of an image count as one, and go where the first of them goes."""

    def __init__(self, share: float, seed: int, *, rest: bool) -> None:
        self.share, self.seed, self.rest = share, seed, rest

    def select(
        self, labels: npt.NDArray[np.int64], classes: int, digests: bytes
    ) -> npt.NDArray[np.int64]:
        """Items of the part, ascending; `digests` has 16 bytes of each image."""
        _, firsts, inverse = np.unique(
            np.frombuffer(digests, "V16"), return_index=True, return_inverse=True
        )
        first = firsts[inverse.reshape(-1)]
        chosen = np.zeros(len(labels), bool)
        for label in range(classes):
            items = np.flatnonzero((labels == label) & (first == np.arange(len(labels))))
            order = items[permutation(len(items), SPLIT, self.seed, label)]
            chosen[order[: round(self.share * len(items))]] = True
        return np.flatnonzero(chosen[first] != self.rest)


class ShardSource(ArraySource):
    """The records of a set in its order. Every shard's hash is checked when the source is opened,
    and where its records lie is taken down."""

    @classmethod
    def opened(cls, place: Place) -> ShardSource | None:
        if place.has_shards:
            return cls(place.path)
        if not place.folder or place.has(DATASET_JSON):
            return None
        recovered = recovered_index(place.path)
        return None if recovered is None else cls(place.path, index=recovered)

    def __init__(self, root: Path, part: Part | None = None, index: Index | None = None) -> None:
        self.root, self.index = root, index or load_index(root)
        index = self.index
        index.check_images(root)
        self.shape = (index.resolution, index.resolution, index.channels)
        self.classes = [info.name for info in index.classes]
        self._files: list[int] = []
        allow_files(len(index.shards))
        places: list[npt.NDArray[np.int64]] = []  # of each shard: number, offset, size, label
        digests = bytearray()
        for number, shard in enumerate(index.shards):
            with open_shard(root, shard, check_hash=True) as file:
                name = str(root / shard.name)
                records = []
                for record in read_records(file, index, name=name):
                    records.append((record.key, record.label))
                    if part is not None:  # equal pixels, written in one way, are equal bytes
                        digests += hashlib.sha256(bytes(record.image)).digest()[:16]
                if len({key for key, _ in records}) != len(records):
                    raise DataError(f"{name}: a key occurs twice")
                file.seek(0)
                spans = _spans(file, records, index, shard.bytes, name)
                labels = (label for _, label in records)
                rows = [(number, *span, k) for span, k in zip(spans, labels, strict=True)]
                places.append(np.asarray(rows, np.int64).reshape(-1, 4))
                self._files.append(os.dup(file.fileno()))
        table = np.concatenate(places)
        items = np.arange(len(table))
        if part is not None:
            items = part.select(table[:, 3], len(self.classes), bytes(digests))
        if not len(items):
            raise DataError(f"{root} has too few images to be cut in this way")
        self._items, self._places, self.labels = items, table[items], table[items, 3]
        self.identity = {"kind": "shards", "name": shown(root.resolve().name), "images": len(items)}
        self.identity["content_sha256"] = index.content_sha256
        if part is not None:
            self.identity |= {"share": part.share, "seed": part.seed, "rest": part.rest}

    def member(self, item: int) -> str:
        return f"record {self._items[item]}"

    def name(self, item: int) -> str:
        return f"{self.root} {self.member(item)}"

    def pixels(self, item: int) -> npt.NDArray[np.uint8]:
        shard, offset, size, label = self._places[item].tolist()
        data: bytes | npt.NDArray[np.uint8]
        data = read_span(self._files[shard], Span(offset, size)).getvalue()
        height, width, channels = self.shape
        if self.index.record == "raw":
            data = np.frombuffer(data, np.uint8).reshape(channels, height, width)
        try:
            return decode_record(Record(self.member(item), data, label), self.index, name="")
        except DataError as error:
            raise BadImage("damaged record") from error


def _spans(
    file: BinaryIO, records: list[tuple[str, int]], index: Index, end: int, name: str
) -> Iterator[Span]:
    """Where each record's image lies, in the order of the records."""
    chunks = Counter(key.partition("+")[0] for key, _ in records)
    image = ENDINGS[index.record][0].encode()
    for member in scan(file, end, name):
        key, _, ending = member.name.partition(b".")
        if ending != image:
            continue
        if index.record != "raw":
            yield Span(member.offset, member.size)
            continue
        size = index.pixel_bytes
        first = member.offset + member.size - chunks[key.decode()] * size
        for place in range(chunks[key.decode()]):
            yield Span(first + place * size, size)
