"""The order of images, for any number of images, shards, streams, processes and interruptions: what
one uninterrupted process reads without a bad image says what all others must read.

Sets lie in memory. An image's pixels tell its number; a bad one is cut short, a bad shard cannot be
opened.
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
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttrain.data import Batch, ImageStream, Storage
from fasttrain.data.order import EpochOrder
from fasttrain.system.errors import UserError
from fasttrain_data import Index, ShardInfo
from fasttrain_data.records import encode_image
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


def merged(ranks: Sequence[ImageStream]) -> dict[str, Any]:
    """What a checkpoint holds, through JSON."""
    states = [rank.state_dict() for rank in ranks]
    cursors = {key: value for state in states for key, value in state["streams"].items()}
    merge: dict[str, Any] = json.loads(json.dumps({**states[0], "streams": cursors}))
    return merge


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


@settings(max_examples=100, deadline=None)
@given(cases(with_bad=False))
def test_interruptions_and_world_sizes_change_nothing(case: Case) -> None:
    check(case)


@settings(max_examples=200, deadline=None)
@given(cases(with_bad=True))
def test_bad_images_and_shards_change_the_order_of_no_other_and_are_counted(case: Case) -> None:
    check(case)


@pytest.mark.parametrize(("workers", "world"), [(1, 2), (2, 1), (2, 3)])
def test_reader_processes_change_nothing(workers: int, world: int) -> None:
    options = {"batch": 12, "streams": 6, "seed": 11, "window": 5, "first_index": 7}
    sizes, bad = (3, 9, 4, 8, 5, 7, 2), frozenset((4, 5, 20, 33, 37))
    check(Case(sizes, options, [(3, world), (2, 3)], bad, lost=2, workers=workers, last=4))


@settings(max_examples=40, deadline=None)
@given(case=cases(with_bad=False), epochs=st.integers(1, 3))
def test_no_image_is_lost_or_repeated_within_an_epoch(case: Case, epochs: int) -> None:
    storage = case.storage()
    (stream,) = case.ranks(storage, 1)
    sizes = [
        [stream.order.images(epoch, number) for epoch in range(epochs)]
        for number in range(stream.streams)
    ]
    read_ = [iter(images) for images in whole(case, max(map(sum, sizes)))]
    for epoch in range(epochs):
        parts = [
            [next(images) for _ in range(own[epoch])]
            for images, own in zip(read_, sizes, strict=True)
        ]
        if stream.resampled:  # an epoch of a stream is one shard, whole
            assert all(sorted(part) in storage.shards for part in parts)
        else:
            assert sorted(number for part in parts for number in part) == list(
                range(sum(case.sizes))
            )


@settings(max_examples=30, deadline=None)
@given(case=cases(with_bad=True), allowed=st.integers(0, 5))
def test_one_bad_image_too_many_stops_at_the_batch_before(case: Case, allowed: int) -> None:
    storage = case.storage()
    (free,) = case.ranks(storage, 1)
    (stream,) = case.ranks(storage, 1, max_skipped=allowed)
    for _ in range(case.last):
        images = numbers(next(free))
        before = stream.state_dict()
        if free.skipped > allowed:
            with pytest.raises(UserError, match=r"shard-00000\d\.tar"):
                next(stream)
            assert stream.state_dict() == before
            return
        assert numbers(next(stream)) == images
        stream.give_back()
        assert stream.state_dict() == before
        assert numbers(next(stream)) == images
        assert stream.state_dict() == free.state_dict()


@settings(max_examples=200, deadline=None)
@given(
    shards=st.integers(1, 40),
    streams=st.integers(1, 12),
    seed=st.integers(0, 2**64),
    epochs=st.integers(1, 15),
)
def test_no_stream_is_ahead_by_more_than_a_shard(
    shards: int, streams: int, seed: int, epochs: int
) -> None:
    streams = min(streams, shards)
    order = EpochOrder([1] * shards, streams=streams, seed=seed, window=4)
    read_ = [0] * streams
    for epoch in range(epochs):
        hands = [order.shards(epoch, stream) for stream in range(streams)]
        assert sorted(shard for hand in hands for shard in hand) == list(range(shards))
        read_ = [before + len(hand) for before, hand in zip(read_, hands, strict=True)]
        assert max(read_) - min(read_) <= 1


def test_resampled_shards_are_drawn_alike_often() -> None:
    order = EpochOrder([1] * 5, streams=4, seed=3, window=1, resampled=True)
    drawn = Counter(order.shards(epoch, s)[0] for epoch in range(1000) for s in range(4))
    assert sorted(drawn) == list(range(5))
    assert all(720 < count < 880 for count in drawn.values())  # 800 and three deviations of 25
