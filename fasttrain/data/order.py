"""The order of images: a function of (seed, epoch) alone, whatever the world size.

    streams = stream_count(batch=512, shards=1282)       # 64

An epoch's shards are permuted and dealt round-robin to `streams` logical streams. Within a stream,
blocks of `window` consecutive records are permuted. A stream is endless: after its shards of one
epoch come its shards of the next. A global batch is batch / streams consecutive records of each
stream, in stream order, and a rank has a contiguous block of it; so every world size that divides
the batch sees the same global batches. Where there are more ranks than streams, several read the
same one and keep different images of it.

    order = EpochOrder([128, 128, 5], streams=2, seed=0, window=512)
    order.shards(epoch=0, stream=1)      # the shards that this stream reads in this epoch

A reader that finds any image at once takes those of many shards in any order (`ScatteredOrder`),
for sets whose shards are not shuffled.

With `resampled`, an epoch of a stream is one shard, drawn from all with replacement: no stream has
shards of its own, so there may be more streams than shards, and images come as often on average.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fasttrain_data.permutation import EPOCH_SHARDS, RESAMPLED, WINDOW, permutation, raw

__all__ = ["WINDOW_SIZE", "Cursor", "EpochOrder", "Order", "ScatteredOrder", "stream_count"]

WINDOW_SIZE = 512
"""Default number of records that are shuffled together."""
MOST_STREAMS = 64
"""Default largest number of streams; a process has a window of each of its streams in memory."""
LEAST_SHARDS = 3
"""Least number of shards of a stream, unless all have equally many and end an epoch together."""


def stream_count(batch: int, shards: int) -> int:
    """Number of streams for a set of `shards` shards: the largest number up to 64 that divides the
    batch and gives each stream equally many shards, or three at least. It depends on neither the
    number of processes nor the model."""
    return max(
        count
        for count in range(1, min(batch, shards, MOST_STREAMS) + 1)
        if batch % count == 0 and (shards % count == 0 or shards // count >= LEAST_SHARDS)
    )


class Cursor(NamedTuple):
    """The next record of a stream: epoch, and position among the stream's records of that epoch."""

    epoch: int
    position: int


class Order(ABC):
    """Where the places of streams are: `streams` of them, each endless and cut into epochs."""

    streams: int
    seed: int
    window: int

    @property
    @abstractmethod
    def layout(self) -> str:
        """A hash of what a cursor's meaning depends on besides the seed."""

    @abstractmethod
    def images(self, epoch: int, stream: int) -> int:
        """How many images `stream` yields in `epoch`."""

    @property
    @abstractmethod
    def choice(self) -> str:
        """Which images the first ones are, in words for a protocol."""

    def distinct(self, stream: int) -> int:
        """How many images `stream` yields before one of them comes again."""
        return self.images(0, stream)

    def advance(self, cursor: Cursor, stream: int, records: int = 1) -> Cursor:
        """The cursor after `records` more records."""
        epoch, position = cursor.epoch, cursor.position + records
        while position >= (images := self.images(epoch, stream)):
            epoch, position = epoch + 1, position - images
        return Cursor(epoch, position)


class EpochOrder(Order):
    """Shards of each stream in an epoch, and permutations of the windows of its records.

    `shard_images`: number of images of each shard; at least `streams` shards unless `resampled`.
    """

    def __init__(
        self,
        shard_images: Sequence[int],
        *,
        streams: int,
        seed: int,
        window: int,
        resampled: bool = False,
    ) -> None:
        self.shard_images = tuple(shard_images)
        self.resampled = resampled
        self.streams, self.seed, self.window = streams, seed, window
        # Streams may differ by a few epochs; the epochs in use stay in the cache.
        self._epoch = lru_cache(maxsize=16)(self._deal)

    @property
    def layout(self) -> str:
        """A hash of the shards' sizes, which the meaning of a cursor depends on."""
        return hashlib.sha256(repr(self.shard_images).encode()).hexdigest()[:16]

    def _deal(self, epoch: int) -> tuple[tuple[list[int], ...], tuple[int, ...]]:
        """Shards of each stream, and the number of images of each stream, in this epoch."""
        if self.resampled:
            drawn = raw(self.streams, RESAMPLED, self.seed, epoch) % len(self.shard_images)
            chosen = tuple([int(shard)] for shard in drawn)
            return chosen, tuple(self.shard_images[shard] for (shard,) in chosen)
        order = permutation(len(self.shard_images), EPOCH_SHARDS, self.seed, epoch).tolist()
        # In each epoch those get one more that come before the ones that last did: after any number
        # of epochs no stream is ahead of another by more than one shard.
        turn = epoch * len(order)
        hands = tuple(
            order[(stream + turn) % self.streams :: self.streams] for stream in range(self.streams)
        )
        return hands, tuple(sum(self.shard_images[shard] for shard in hand) for hand in hands)

    @property
    def choice(self) -> str:
        return "the first of its order"

    def shards(self, epoch: int, stream: int) -> list[int]:
        """Shard numbers that `stream` reads in `epoch`, in order. Never empty."""
        return self._epoch(epoch)[0][stream]

    def images(self, epoch: int, stream: int) -> int:
        """Number of images of `stream` in `epoch`."""
        return self._epoch(epoch)[1][stream]

    def window_order(self, epoch: int, stream: int, block: int, size: int) -> npt.NDArray[np.int64]:
        """Permutation, int64 [size], of the `block`-th window of the stream's records."""
        return permutation(size, WINDOW, self.seed, epoch, stream, block)


class ScatteredOrder(EpochOrder):
    """One stream of the images of `spread` shards at a time, permuted together; in an epoch of
    all shards."""

    def __init__(self, shard_images: Sequence[int], *, seed: int, spread: int) -> None:
        super().__init__(shard_images, streams=1, seed=seed, window=WINDOW_SIZE)
        self.spread = spread

    @property
    def choice(self) -> str:
        total = len(self.shard_images)
        some = f" of {self.spread} of its {total} tars" if total > self.spread else ""
        return f"at random{some}"

    def groups(self, epoch: int) -> Iterator[tuple[int, list[int]]]:
        """The shards that are scattered together, with the place of their first image in the
        epoch."""
        shards, first = self.shards(epoch, 0), 0
        for start in range(0, len(shards), self.spread):
            group = shards[start : start + self.spread]
            yield first, group
            first += sum(self.shard_images[shard] for shard in group)
