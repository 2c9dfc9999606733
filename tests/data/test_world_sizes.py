"""Up to 1,024 processes see what one sees: simulated, with places in the set instead of images; and
what processes that read the same stream must agree in."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, closing
from itertools import count
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pytest

from fasttrain.data import ImageStream, Storage
from fasttrain.data.cursor import merged
from fasttrain.data.order import Cursor, stream_count
from fasttrain.data.parts import Source
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.training.run.reading import apart
from fasttrain_data import Index, ShardInfo
from tests.data.batches import values
from tests.data.damage import damage_images
from tests.hostile.files import index_of

EACH, IMAGENET = 20, 1282
"""Images of a shard here; shards of ImageNet."""


class Places(Storage):
    """A set with this many shards, none of which is opened."""

    def __init__(self, shards: int) -> None:
        names = [f"shard-{number:06d}.tar" for number in range(shards)]
        table = index_of(dict.fromkeys(names, bytes(2048 * EACH)), EACH, resolution=2, channels=1)
        self._index = Index.model_validate(table)

    def index(self) -> Index:
        return self._index

    def name(self, shard: ShardInfo) -> str:
        return shard.name

    def open(self, shard: ShardInfo) -> AbstractContextManager[BinaryIO]:
        raise AssertionError(shard.name)


def of_places(source: Source, stream: int, cursor: Cursor, *_: Any) -> Iterator[dict[str, Any]]:
    """What a pipeline yields, but not shuffled in windows; pixels spell the place in the set."""
    order, first = source.order, cursor.position
    for epoch in count(cursor.epoch):
        shards = order.shards(epoch, stream)
        for place in range(first, order.images(epoch, stream)):
            number = EACH * shards[place // EACH] + place % EACH
            image = np.frombuffer(number.to_bytes(4, "little"), np.uint8).reshape(1, 2, 2)
            yield {"cursor": Cursor(epoch, place), "image": image, "label": 0}
        first = 0


class Processes:
    """All ranks of a world, from the start or from a merged state on."""

    def __init__(self, world: int, state: dict[str, Any] | None, storage: Any, **options: Any):
        self.ranks = [
            ImageStream(storage, rank=rank, world_size=world, **options) for rank in range(world)
        ]
        for rank in self.ranks if state else ():
            rank.load_state_dict(state or {})

    def next(self) -> list[tuple[int, int]]:
        """Places and indices of the next global batch."""
        found: list[tuple[int, int]] = []
        for rank in self.ranks:
            batch = next(rank)
            places = batch.images.numpy().reshape(-1, 4).view("<u4")[:, 0]
            found += zip(places.tolist(), batch.index.tolist(), strict=True)
        return found

    def state(self) -> dict[str, Any]:
        assert not apart([rank.cursors for rank in self.ranks])
        return merged([rank.state_dict() for rank in self.ranks])


@pytest.mark.parametrize(
    ("overrides", "worlds"),
    [((), (512, 1, 256, 2, 128, 4, 64, 8, 32, 16)), (("batch=1024",), (1024, 2))],
)
def test_every_number_of_processes_sees_the_batches_of_one(
    overrides: tuple[str, ...], worlds: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that divide the recipe's batch; each goes on where another number has stopped."""
    monkeypatch.setattr(Source, "pipeline", of_places)
    batch = load_settings("imagenet64-d2o-f", overrides, FinetuneSettings).batch
    assert max(worlds) == batch
    assert overrides or sorted(worlds) == [n for n in range(1, batch + 1) if batch % n == 0]
    storage, options = Places(IMAGENET), {"batch": batch, "seed": 3}
    alone = Processes(1, None, storage, **options)
    assert alone.ranks[0].streams == 64
    state = None
    for world in worlds:
        ranks = Processes(world, state, storage, **options)
        assert all(len(rank.cursors) == max(1, 64 // world) for rank in ranks.ranks)
        assert ranks.next() == alone.next()
        state = ranks.state()
        assert state == alone.state()


@pytest.mark.parametrize(
    ("batch", "shards", "streams"),
    [
        (512, IMAGENET, 64),
        (256, 50, 16),  # CIFAR-10
        (256, 16, 16),
        (64, 15, 4),  # the digits
        (256, 4, 4),
        (96, 5000, 48),
        (60, 40, 20),
        (7, 100, 7),
        (512, 1, 1),
        (1, 100, 1),
    ],
)
def test_the_number_of_streams(batch: int, shards: int, streams: int) -> None:
    """It is part of a run's identity: it follows from batch and set alone, and never changes."""
    assert stream_count(batch, shards) == streams


@pytest.mark.parametrize("workers", [0, 2])
def test_a_process_has_parts_of_several_streams(shards: Path, workers: int) -> None:
    """Neither number divides the other: 4 streams of 3 images, 6 processes with 2 each."""
    options: dict[str, Any] = {"batch": 12, "streams": 4, "seed": 1, "window": 7}
    alone = ImageStream(shards, **options)
    with ExitStack() as opened:
        ranks = [
            opened.enter_context(
                closing(ImageStream(shards, rank=r, world_size=6, workers=workers, **options))
            )
            for r in range(6)
        ]
        assert [list(rank.cursors) for rank in ranks] == [[0], [0, 1], [1], [2], [2, 3], [3]]
        for _ in range(9):
            batches = [next(rank) for rank in ranks]
            assert [value for batch in batches for value in values(batch)] == values(next(alone))


def test_what_several_processes_pass_over_counts_once(make_set: Callable[..., Path]) -> None:
    path = make_set(counts=[16, 16], per_shard=8)
    for shard in (1, 2):
        damage_images(path, shard, 2, 3)
    options: dict[str, Any] = {"batch": 8, "streams": 2, "seed": 1, "window": 3, "max_skipped": 9}
    alone = ImageStream(path, **options)
    ranks = [ImageStream(path, rank=r, world_size=8, **options) for r in range(8)]
    for _ in range(4):
        assert [value for rank in ranks for value in values(next(rank))] == values(next(alone))
        assert sum(rank.skipped for rank in ranks) == alone.skipped
        by_stream = [rank.passed_over for rank in ranks]
        assert by_stream == [by_stream[0]] * 4 + [by_stream[4]] * 4
        assert not apart([rank.cursors for rank in ranks])
    assert alone.skipped > 0
    assert merged([rank.state_dict() for rank in ranks]) == alone.state_dict()


def test_processes_that_read_apart_are_found() -> None:
    here, there = Cursor(0, 5), Cursor(0, 6)
    assert not apart([{0: here}, {0: here, 1: there}, {1: there}])
    assert apart([{0: here}, {0: here, 1: there}, {1: here}])
