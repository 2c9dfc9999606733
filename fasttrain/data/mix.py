"""Several sets in one run, each with a weight: which set each image comes from is a function of
(seed, stream, place) alone, so that neither the number of processes nor a resume changes it.

    storage = MixedStorage([open_storage("data/cats"), open_storage("sets/dogs")], [3, 1])

A stream of a mixture is divided into blocks of 10,000 images, of which each set has its share
exactly, in a seeded order; within it each set is read by a stream of its own, epoch after epoch.
The cursor of the mixture is (block, place), from which those of the sets follow.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import webdataset

from fasttrain.data.foreign import ReadScattered, TarStorage
from fasttrain.data.order import Cursor, EpochOrder, Order, ScatteredOrder
from fasttrain.data.stages import ReadShards, Sample, ShardList, ShuffleWindows
from fasttrain.data.storage import Storage
from fasttrain_data import ClassInfo, DataError, Index, ShardInfo
from fasttrain_data.permutation import MIX, SAMPLE, permutation

__all__ = ["BLOCK", "MixedOrder", "MixedStorage", "record_stages"]

BLOCK = 10_000


class MixedOrder(Order):
    """The order of a mixture; its "epoch" is a block.

    counts: images of a block that come from each set.
    """

    def __init__(self, orders: Sequence[Order], counts: Sequence[int]) -> None:
        self.orders, self.counts = tuple(orders), tuple(counts)
        first = self.orders[0]
        self.streams, self.seed, self.window = first.streams, first.seed, first.window
        self._sets = lru_cache(maxsize=64)(self._choose)

    @property
    def layout(self) -> str:
        parts = repr([(order.layout, n) for order, n in zip(self.orders, self.counts, strict=True)])
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def images(self, epoch: int, stream: int) -> int:
        return BLOCK

    @property
    def choice(self) -> str:
        return " and ".join(dict.fromkeys(order.choice for order in self.orders))

    def distinct(self, stream: int) -> int:
        """Those before the first set that begins again."""
        images = [order.distinct(stream) for order in self.orders]
        block = min(n // count for n, count in zip(images, self.counts, strict=True))
        sets = self.sets(block, stream)
        again = [
            int(np.flatnonzero(sets == number)[n - block * count])
            for number, (n, count) in enumerate(zip(images, self.counts, strict=True))
            if n - block * count < count
        ]
        return block * BLOCK + min(again)

    def sets(self, block: int, stream: int) -> npt.NDArray[np.int64]:
        """Which set each image of a block comes from, int64 [BLOCK]."""
        return self._sets(block, stream)

    def _choose(self, block: int, stream: int) -> npt.NDArray[np.int64]:
        each = np.repeat(np.arange(len(self.counts)), self.counts)
        return each[permutation(BLOCK, MIX, self.seed, stream, block)]

    def cursors(self, cursor: Cursor, stream: int) -> list[Cursor]:
        """Where the stream of each set stands when the mixture's is at `cursor`."""
        block, place = cursor
        before = np.bincount(self.sets(block, stream)[:place], minlength=len(self.counts))
        return [
            order.advance(Cursor(0, 0), stream, block * count + int(more))
            for order, count, more in zip(self.orders, self.counts, before, strict=True)
        ]


class MixedStorage(Storage):
    """Sets wherever they are. Classes get the numbers that they have by name in the first; where
    that has one class alone, so has the mixture.

    weights: share of each in the images, positive.

    Raises DataError for weights that are none.
    """

    def __init__(self, parts: Sequence[Storage], weights: Sequence[float]) -> None:
        self.parts, self.weights = tuple(parts), tuple(weights)
        self.attempts = max(part.attempts for part in parts)
        self.counts = _shares(self.weights)
        self.indices: tuple[Index, ...] = ()
        self.numbers: tuple[npt.NDArray[np.int64], ...] = ()
        self._of: dict[str, tuple[int, ShardInfo]] = {}

    def __str__(self) -> str:
        return " + ".join(map(str, self.parts))

    def index(self) -> Index:
        """Of all sets together. Raises DataError, naming two, when they do not go together."""
        indices = self.indices = tuple(part.index() for part in self.parts)
        first = indices[0]
        shards: list[ShardInfo] = []
        for number, (part, index) in enumerate(zip(self.parts, indices, strict=True)):
            for what in ("resolution", "channels", "latents"):
                if getattr(index, what) != getattr(first, what):
                    raise DataError(
                        f"{part} has {what} {getattr(index, what)}, {self.parts[0]} has "
                        f"{getattr(first, what)}: convert one of them again"
                    )
            for info in index.shards:
                shards.append(info.model_copy(update={"name": f"{number}/{info.name}"}))
                self._of[shards[-1].name] = number, info
        content = repr([(i.content_sha256, n) for i, n in zip(indices, self.counts, strict=True)])
        fields: dict[str, Any] = {
            "classes": self._classes(),
            "images": sum(index.images for index in indices),
            "shards": tuple(shards),
            "content_sha256": hashlib.sha256(content.encode()).hexdigest(),
            "source": {"kind": "mix", "sets": [index.source for index in indices]},
        }
        return first.model_copy(update=fields)

    def _classes(self) -> tuple[ClassInfo, ...]:
        names = [info.name for info in self.indices[0].classes]
        number = {name: label for label, name in enumerate(names)}
        images = Counter[int]()
        numbers = []
        for part, index in zip(self.parts, self.indices, strict=True):
            if len(names) == 1:
                numbers.append(np.zeros(len(index.classes), np.int64))
                images[0] += index.images
                continue
            other = next((info.name for info in index.classes if info.name not in number), None)
            if other is not None:
                raise DataError(
                    f"{part} has a class {other}, {self.parts[0]} has none of that name: convert "
                    "one of them again with --class-names, or name the set with all classes first"
                )
            numbers.append(np.asarray([number[info.name] for info in index.classes], np.int64))
            for info in index.classes:
                images[number[info.name]] += info.images
        self.numbers = tuple(numbers)
        return tuple(ClassInfo(name=name, images=images[n]) for n, name in enumerate(names))

    def most_streams(self, index: Index) -> int:
        return min(len(each.shards) for each in self.indices)

    def order(
        self, index: Index, *, streams: int, seed: int, window: int | None, resampled: bool
    ) -> MixedOrder:
        how: dict[str, Any] = {"streams": streams, "window": window, "resampled": resampled}
        # No two sets are dealt alike, should they be the same.
        orders = [
            part.order(each, seed=seed + number, **how)
            for number, (part, each) in enumerate(zip(self.parts, self.indices, strict=True))
        ]
        return MixedOrder(orders, self.counts)

    def name(self, shard: ShardInfo) -> str:
        number, info = self._of[shard.name]
        return self.parts[number].name(info)

    @contextmanager
    def open(self, shard: ShardInfo) -> Iterator[BinaryIO]:
        number, info = self._of[shard.name]
        with self.parts[number].open(info) as file:
            yield file

    def images(self, shard: ShardInfo, index: Index) -> Iterator[npt.NDArray[np.uint8]]:
        number, info = self._of[shard.name]
        return self.parts[number].images(info, self.indices[number])

    def class_shares(self, index: Index) -> list[float]:
        shares = np.zeros(len(index.classes))
        for part, count, numbers in zip(self.indices, self.counts, self.numbers, strict=True):
            images = [info.images / part.images for info in part.classes]
            np.add.at(shares, numbers, np.asarray(images) * count / BLOCK)
        return list(map(float, shares))

    def sample(self, index: Index) -> npt.NDArray[np.bool_]:
        """As many of each set, at random, as have its weight together."""
        images = [each.images for each in self.indices]
        total = min(n * BLOCK // count for n, count in zip(images, self.counts, strict=True))
        chosen = []
        for number, (n, count) in enumerate(zip(images, self.counts, strict=True)):
            kept = np.zeros(n, dtype=np.bool_)
            kept[permutation(n, SAMPLE, number)[: total * count // BLOCK]] = True
            chosen.append(kept)
        return np.concatenate(chosen)

    def check(self, index: Index) -> None:
        for part, each in zip(self.parts, self.indices, strict=True):
            part.check(each)


class _MixRecords:
    """Source stage: the records of a stream, from each set in turn, endless."""

    def __init__(
        self, storage: MixedStorage, order: MixedOrder, stream: int, cursor: Cursor
    ) -> None:
        self.storage, self.order, self.stream, self.cursor = storage, order, stream, cursor

    def __call__(self) -> Iterator[Sample]:
        order, stream, storage = self.order, self.stream, self.storage
        sources = [
            iter(webdataset.DataPipeline(*record_stages(part, index, each, stream, cursor)))
            for part, index, each, cursor in zip(
                storage.parts,
                storage.indices,
                order.orders,
                order.cursors(self.cursor, stream),
                strict=True,
            )
        ]
        block, place = self.cursor
        while True:
            for number in order.sets(block, stream)[place:].tolist():
                sample = next(sources[number])
                sample["index"], sample["numbers"] = (
                    storage.indices[number],
                    storage.numbers[number],
                )
                sample["cursor"] = Cursor(block, place)
                yield sample
                place += 1
            block, place = block + 1, 0


def record_stages(
    storage: Storage, index: Index, order: Order, stream: int, cursor: Cursor
) -> list[Any]:
    """The stages of a stream's DataPipeline up to its records in their order."""
    if isinstance(storage, MixedStorage) and isinstance(order, MixedOrder):
        return [_MixRecords(storage, order, stream, cursor)]
    assert isinstance(order, EpochOrder)
    if isinstance(order, ScatteredOrder):
        assert isinstance(storage, TarStorage)
        return [ReadScattered(storage, index, order, cursor)]
    return [
        ShardList(order, stream, cursor),
        ReadShards(storage, index),
        ShuffleWindows(order, stream, cursor),
    ]


def _shares(weights: Sequence[float]) -> list[int]:
    """Images of a block for each weight, by largest remainders."""
    total = sum(weights)
    exact = [weight / total * BLOCK for weight in weights]
    counts = [int(share) for share in exact]
    rest = sorted(range(len(counts)), key=lambda n: (counts[n] - exact[n], n))
    for number in rest[: BLOCK - sum(counts)]:
        counts[number] += 1
    if min(counts) < 1:
        raise DataError(
            f"data.mix: a weight of {min(weights):g} of {total:g} is less than one image of {BLOCK}"
        )
    return counts
