"""Sets in memory, how they are read and where reading is broken off; what each stream has read.

An image's pixels tell its number; a bad one is cut short, a bad shard cannot be opened.
"""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any, BinaryIO

import numpy as np
from hypothesis import strategies as st

from fasttrain.data import Batch, ImageStream, Storage
from fasttrain_data import Index, ShardInfo
from fasttrain_data.records import encode_image
from tests.data.batches import merged
from tests.hostile.files import index_of, member, tar


@cache
def record(number: int, bad: bool) -> bytes:
    """Members of an image whose pixels spell its number, and of its label, number % 3."""
    digits = np.array([number >> 8, number & 255, 7, 9], np.uint8).reshape(2, 2, 1)
    image = encode_image(digits)
    image = image[:-20] if bad else image
    return member(f"{number}.png", image) + member(f"{number}.cls", str(number % 3).encode())


class Memory(Storage):
    """Shards with these numbers of images; some images, and one shard, cannot be read."""

    def __init__(self, sizes: Sequence[int], bad: frozenset[int], lost: int | None) -> None:
        numbers = iter(range(sum(sizes)))
        shards = [[next(numbers) for _ in range(size)] for size in sizes]
        self.bad = bad | frozenset(shards[lost] if lost is not None else ())
        self.shards = shards
        self._lost = lost
        self._data = {
            f"shard-{place:06d}.tar": tar(*(record(n, n in bad) for n in shard))
            for place, shard in enumerate(shards)
        }
        labels = Counter(n % 3 for n in range(sum(sizes)))
        classes = [{"name": str(label), "images": labels[label]} for label in range(3)]
        table = index_of(self._data, 1, resolution=2, channels=1, classes=classes)
        table["images"] = sum(sizes)
        for info, size in zip(table["shards"], sizes, strict=True):
            info["images"] = size
        self._index = Index.model_validate_json(json.dumps(table))

    def __str__(self) -> str:
        return "memory"

    def index(self) -> Index:
        return self._index

    def name(self, shard: ShardInfo) -> str:
        return f"memory/{shard.name}"

    @contextmanager
    def open(self, shard: ShardInfo) -> Iterator[BinaryIO]:
        if self._lost is not None and shard.name == f"shard-{self._lost:06d}.tar":
            raise OSError("gone")
        yield io.BytesIO(self._data[shard.name])


@dataclass(frozen=True)
class Case:
    """A set, how it is read, and where reading is broken off: batches, then processes to go on."""

    sizes: tuple[int, ...]
    options: dict[str, Any]
    stops: list[tuple[int, int]]
    bad: frozenset[int] = frozenset()
    lost: int | None = None
    workers: int = 0
    last: int = field(default=0)

    def storage(self) -> Memory:
        return Memory(self.sizes, self.bad, self.lost)

    def ranks(self, storage: Storage, world_size: int, **changes: Any) -> list[ImageStream]:
        return [
            ImageStream(
                storage,
                rank=rank,
                world_size=world_size,
                **{"max_skipped": 10**6, "workers": self.workers, **self.options, **changes},
            )
            for rank in range(world_size)
        ]


@st.composite
def cases(draw: st.DrawFn, *, with_bad: bool) -> Case:
    sizes = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=8)))
    resampled = draw(st.booleans())
    streams = draw(st.integers(1, 6 if resampled else min(6, len(sizes))))
    options = {
        "batch": streams * draw(st.integers(1, 4)),
        "streams": streams,
        "seed": draw(st.integers(0, 2**64)),
        "window": draw(st.integers(1, 12)),
        "resampled": resampled,
        "first_index": draw(st.sampled_from([0, 5, 10**12])),
    }
    divisors = [n for n in range(1, options["batch"] + 1) if options["batch"] % n == 0]
    stop = st.tuples(st.integers(0, 9), st.sampled_from(divisors))
    stops = draw(st.lists(stop, min_size=1, max_size=3))
    bad, lost = frozenset[int](), None
    if with_bad:
        # One image of each shard is sound, else a stream could be without any for ever.
        firsts = np.cumsum((0, *sizes[:-1])).tolist()
        others = sorted(set(range(sum(sizes))) - set(firsts))
        bad = frozenset(draw(st.sets(st.sampled_from(others)))) if others else bad
        lost = draw(st.none() | st.integers(0, len(sizes) - 1)) if len(sizes) > streams else None
    return Case(sizes, options, stops, bad, lost, last=draw(st.integers(1, 12)))


def numbers(batch: Batch) -> list[int]:
    """Which images a batch holds."""
    pixels = batch.images[:, 0].long()
    assert (pixels[:, 1, 0] == 7).all()
    assert (pixels[:, 1, 1] == 9).all()
    found: list[int] = (pixels[:, 0, 0] * 256 + pixels[:, 0, 1]).tolist()
    assert batch.class_labels is not None
    assert batch.class_labels.argmax(1).tolist() == [number % 3 for number in found]
    return found


def read(case: Case) -> Iterator[tuple[list[int], list[int], int]]:
    """Images, indices and skipped images so far of each global batch, with all interruptions."""
    storage, ranks = case.storage(), list[ImageStream]()
    for batches, world_size in [*case.stops, (case.last, 1)]:
        state = merged(ranks) if ranks else None
        for rank in ranks:
            rank.close()
        ranks = case.ranks(storage, world_size)
        for rank in ranks:
            if state is not None:
                rank.load_state_dict(state)
        for _ in range(batches):
            parts = [next(rank) for rank in ranks]
            yield (
                [number for part in parts for number in numbers(part)],
                [index for part in parts for index in part.index.tolist()],
                sum(rank.skipped for rank in ranks),
            )
    for rank in ranks:
        rank.close()


def by_stream(batches: Sequence[Sequence[int]], streams: int) -> list[list[int]]:
    """What each stream read, in order."""
    share = len(batches[0]) // streams
    return [
        [number for batch in batches for number in batch[s * share : (s + 1) * share]]
        for s in range(streams)
    ]


def whole(case: Case, images: int) -> list[list[int]]:
    """What each stream reads in one process, uninterrupted, of a set without a bad image: so many
    that are not bad in the case, at least."""
    sound = replace(case, bad=frozenset(), lost=None, workers=0)
    (stream,) = sound.ranks(sound.storage(), 1)
    batches: list[list[int]] = []
    left = Counter(dict.fromkeys(range(stream.streams), images))
    share, bad = stream.batch // stream.streams, case.storage().bad
    while left:  # what has come to nothing goes
        batches.append(numbers(next(stream)))
        left -= Counter(n // share for n, number in enumerate(batches[-1]) if number not in bad)
    return by_stream(batches, stream.streams)


def check(case: Case) -> None:
    """Everything that `read` gives follows from what `whole` gives."""
    found = list(read(case))
    options, streams = case.options, case.options["streams"]
    batch, bad = options["batch"], case.storage().bad
    batches = [images for images, _, _ in found]
    for place, (_, index, _) in enumerate(found):
        start = options["first_index"] + place * batch
        assert index == list(range(start, start + batch))
    got = by_stream(batches, streams)
    longest = len(got[0])
    plain = whole(case, longest)
    skipped = [0] * len(found)
    share = batch // streams
    for stream, images in enumerate(got):
        sound = [place for place, number in enumerate(plain[stream]) if number not in bad]
        assert images == [plain[stream][place] for place in sound[:longest]]
        for place in range(len(found)):
            read_ = (place + 1) * share
            skipped[place] += sound[read_ - 1] + 1 - read_  # the bad ones before the last sound one
    assert [count for _, _, count in found] == skipped
