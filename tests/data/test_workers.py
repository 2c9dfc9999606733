"""Reader processes change nothing: not a batch, not a cursor, not an error."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain.data import ImageStream
from fasttrain.system.errors import UserError
from tests.data.batches import IMAGES, merged, values
from tests.data.damage import damage_images
from tests.data.workers import OPTIONS, pids, told

pytestmark = pytest.mark.usefixtures("no_process_is_left")


@pytest.mark.parametrize("resampled", [False, True])
@pytest.mark.parametrize("window", [1, 7, 512])
def test_workers_change_nothing(shards: Path, window: int, resampled: bool) -> None:
    """Over three epochs, also with more workers than streams."""
    options = {**OPTIONS, "window": window, "resampled": resampled}
    count = 3 * IMAGES // 12 + 2
    expected = told(ImageStream(shards, **options), count)
    assert expected[-1][3]["streams"]["0"]["epoch"] >= 2
    for workers in (1, 2, 3, 9):
        with closing(ImageStream(shards, workers=workers, **options)) as stream:
            assert told(stream, count) == expected
            assert len(pids(stream)) == min(workers, 4)


@pytest.mark.parametrize("resampled", [False, True])
@pytest.mark.parametrize(("before", "after"), [(1, 2), (2, 1), (4, 2), (1, 4)])
def test_a_cursor_resumes_at_another_world_size(
    shards: Path, before: int, after: int, resampled: bool
) -> None:
    """Workers have read ahead of the cursor by then."""
    options = {**OPTIONS, "resampled": resampled}
    expected = [batch for batch, *_ in told(ImageStream(shards, **options), 12)]

    def world(size: int) -> list[ImageStream]:
        return [
            ImageStream(shards, rank=rank, world_size=size, workers=2, **options)
            for rank in range(size)
        ]

    first, second = world(before), world(after)
    for batch in expected[:7]:
        assert [value for rank in first for value in values(next(rank))] == batch
    for rank in second:
        rank.load_state_dict(merged(first))
    for batch in expected[7:]:
        assert [value for rank in second for value in values(next(rank))] == batch
    for rank in first + second:
        rank.close()


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_all_of_a_batch_is_page_locked_when_asked_for(
    shards: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From other memory a GPU's copy would wait for all work before it. Without a GPU no page can
    be locked: what torch is asked for is looked at."""
    with closing(ImageStream(shards, workers=workers, **OPTIONS)) as stream:
        plain = told(stream, 3)
    locked: set[int] = set()

    def asking(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*args: Any, pin_memory: bool = False, **more: Any) -> torch.Tensor:
            tensor = make(*args, **more)
            if pin_memory:
                locked.add(tensor.data_ptr())
            return tensor

        return made

    for name in ("empty", "zeros", "arange"):
        monkeypatch.setattr(torch, name, asking(getattr(torch, name)))
    with closing(ImageStream(shards, workers=workers, pin=True, **OPTIONS)) as stream:
        batch = next(stream)
    assert batch.class_labels is not None
    for tensor in (batch.images, batch.class_labels, batch.index):
        assert tensor.data_ptr() in locked
    with closing(ImageStream(shards, workers=workers, pin=True, **OPTIONS)) as stream:
        assert told(stream, 3) == plain


@pytest.fixture
def spoilt(make_set: Callable[..., Path]) -> Path:
    """Four shards of eight images; two in each of two shards are damaged."""
    path = make_set(counts=[16, 16], per_shard=8)
    for shard in (1, 2):
        damage_images(path, shard, 2, 3)
    return path


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4])
def test_bad_images_are_the_same_for_readers(spoilt: Path, limit: int) -> None:
    """The same batches, counts and reasons, up to the same error at the same place."""
    options: dict[str, Any] = {"batch": 4, "streams": 2, "seed": 1, "window": 3}
    seen = []
    for workers in (0, 1, 2):
        with closing(ImageStream(spoilt, workers=workers, max_skipped=limit, **options)) as stream:
            found: list[Any] = []
            error = ""
            try:
                for _ in range(7 if limit == 4 else 9):  # 28 good ones in an epoch
                    found.append((*told(stream, 1), stream.skipped, list(stream.faults)))
            except UserError as problem:
                error = str(problem)
            seen.append((found, error, stream.state_dict()))
    assert seen[0] == seen[1] == seen[2]
    found, error, state = seen[0]
    assert "\n" not in error
    if limit < 4:  # an epoch has four
        assert " is a damaged PNG image" in error
        skipped = sum(place["skipped"] for place in state["streams"].values())
        assert skipped <= limit
    else:
        assert not error
        images = sorted(value for (batch, *_), *_ in found for value in batch)
        assert len(set(images)) == 28
        assert found[-1][1] == 4
        assert len(set(found[-1][2])) == 4


@pytest.mark.parametrize("workers", [0, 2])
def test_a_batch_that_is_given_back_comes_again(spoilt: Path, workers: int) -> None:
    options: dict[str, Any] = {"batch": 4, "streams": 2, "seed": 1, "window": 3, "max_skipped": 4}
    expected = told(ImageStream(spoilt, **options), 7)
    with closing(ImageStream(spoilt, workers=workers, **options)) as stream:
        for batch in expected:
            before = stream.state_dict()
            assert told(stream, 1) == [batch]
            stream.give_back()
            assert stream.state_dict() == before
            assert told(stream, 1) == [batch]


def test_the_seed_of_resampled_streams(shards: Path) -> None:
    options = {**OPTIONS, "resampled": True, "workers": 2}
    orders = []
    for seed in (1, 1, 2):
        with closing(ImageStream(shards, **{**options, "seed": seed})) as stream:
            orders.append([batch for batch, *_ in told(stream, 10)])
    assert orders[0] == orders[1] != orders[2]


def test_resampled_streams_may_be_more_than_shards(make_set: Callable[..., Path]) -> None:
    path = make_set(counts=[6, 6], per_shard=6)
    options: dict[str, Any] = {"batch": 32, "streams": 16, "seed": 0, "resampled": True}
    with pytest.raises(UserError, match="12 images, fewer than the 16 streams"):
        ImageStream(path, **{**options, "resampled": False})
    with closing(ImageStream(path, workers=3, **options)) as stream:
        found = told(stream, 60)
    assert found == told(ImageStream(path, **options), 60)
    count = torch.bincount(torch.tensor([value for batch, *_ in found for value in batch]))
    assert len(count) == 12
    assert count.sum() == 60 * 32
    # 320 draws of one of two shards, each shard's images as often as the shard: 160 +- 4 * 9.
    assert count.min() > 120
    assert count.max() < 200
