"""The order of images, for any number of images, shards, streams, processes and interruptions: what
one uninterrupted process reads without a bad image says what all others must read."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttrain.data.order import EpochOrder
from fasttrain.system.errors import UserError
from tests.data.orders import Case, cases, check, numbers, whole


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
