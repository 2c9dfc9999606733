"""Several sets in one run: shares by weight, an order that no number of processes and no resume
changes, and sets that do not go together."""

from __future__ import annotations

from collections import Counter
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from fasttrain.data import ImageStream, open_storage, storage_of
from fasttrain.data.cursor import fresh_order, merged
from fasttrain.data.foreign import View
from fasttrain.data.mix import BLOCK, MixedOrder, MixedStorage
from fasttrain.data.order import Cursor, EpochOrder
from fasttrain.settings import NetworkSettings
from fasttrain.settings.data import DataSettings, MixedSet
from fasttrain.system.errors import UserError
from fasttrain_data import DataError, convert
from fasttrain_data.indexing import run_indexing
from tests.foreign import write_shards

OPTIONS: dict[str, Any] = {"batch": 8, "streams": 4, "seed": 3, "window": 3}


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A shard set of images 0 to 19, and WebDataset's tars of images 100 to 111."""
    folder = tmp_path_factory.mktemp("mix")
    write_shards(folder / "in", images=20, per_shard=7)
    convert(folder / "in", folder / "ours", resolution=8, images_per_shard=4, channels=1)
    write_shards(folder / "theirs", images=12, per_shard=3, first=99)
    run_indexing(str(folder / "theirs"), workers=1)
    return [folder / "ours", folder / "theirs"]


def mixed(sets: list[Path], *weights: float) -> MixedStorage:
    view = View(resolution=8, channels=1)
    return MixedStorage([open_storage(path, view=view) for path in sets], weights)


def seen(stream: ImageStream, batches: int) -> list[tuple[int, int]]:
    found = []
    for batch in islice(stream, batches):
        assert batch.class_labels is not None
        labels = batch.class_labels.argmax(1).tolist()
        found += list(zip(batch.images[:, 0, 0, 0].tolist(), labels, strict=True))
    stream.close()
    return found


def test_shares_are_those_of_the_weights_and_each_set_goes_by_epochs(sets: list[Path]) -> None:
    stream = ImageStream(mixed(sets, 3, 1), **{**OPTIONS, "streams": 1}, workers=2)
    assert stream.manifest.images == 32
    found = seen(stream, BLOCK // 8)
    assert all(label == value % 3 for value, label in found)
    counts = Counter(value for value, _ in found)
    assert sum(counts[n] for n in range(20)) == 7500
    assert sum(counts[n] for n in range(99, 111)) == 2500
    assert {counts[n] for n in range(20)} == {375}  # 375 whole epochs
    assert {counts[n] for n in range(99, 111)} <= {208, 209}


@pytest.mark.parametrize("world", [1, 2, 4, 8])
def test_the_order_of_any_number_of_processes_and_of_a_resume(sets: list[Path], world: int) -> None:
    expected = seen(ImageStream(mixed(sets, 0.7, 0.3), **OPTIONS), 12)

    def ranks(world: int, state: dict[str, Any] | None, batches: int) -> tuple[Any, Any]:
        streams = [
            ImageStream(mixed(sets, 0.7, 0.3), **OPTIONS, rank=rank, world_size=world)
            for rank in range(world)
        ]
        for stream in streams if state else ():
            stream.load_state_dict(state or {})
        parts = [seen(stream, batches) for stream in streams]
        each = 8 // world
        order = [
            x for b in range(batches) for part in parts for x in part[b * each : (b + 1) * each]
        ]
        return order, merged([stream.state_dict() for stream in streams])

    before, state = ranks(world, None, 5)
    after, _ = ranks({1: 2, 2: 1, 4: 8, 8: 4}[world], state, 7)
    assert before + after == expected
    other = ImageStream(mixed(sets, 0.7, 0.3), **OPTIONS)
    other.load_state_dict(fresh_order(state, 4))
    assert seen(other, 7) != after


def test_a_place_in_a_mixture_is_a_place_in_each_set() -> None:
    orders = [EpochOrder([5, 4, 6], streams=2, seed=s, window=3) for s in (0, 1)]
    order = MixedOrder(orders, [7000, 3000])
    for at in (Cursor(0, 0), Cursor(0, 17), Cursor(3, 9999)):
        choices = [order.sets(block, 1) for block in range(at.epoch + 1)]
        sets = [*(n for each in choices[:-1] for n in each), *choices[-1][: at.position]]
        counts = [sets.count(0), sets.count(1)]
        assert order.cursors(at, 1) == [
            each.advance(Cursor(0, 0), 1, count) for each, count in zip(orders, counts, strict=True)
        ]
    assert not (order.sets(0, 0) == order.sets(0, 1)).all()


def test_settings_name_a_mixture(sets: list[Path], tmp_path: Path) -> None:
    index = tmp_path / "index"
    run_indexing(str(sets[1]), out=index, workers=1)
    mix = (MixedSet(path=str(sets[0]), weight=3), MixedSet(path=str(sets[1]), index=str(index)))
    data = DataSettings.model_validate({"mix": mix, "resolution": 8})
    found = storage_of(data, NetworkSettings(img_resolution=16, img_channels=1))
    assert isinstance(found, MixedStorage)
    assert found.counts == [7500, 2500]
    view = View(resolution=8, channels=1)
    parts = [open_storage(sets[0], view=view), open_storage(sets[1], view=view, index=index)]
    expected = ImageStream(MixedStorage(parts, [3, 1]), **OPTIONS)
    assert seen(ImageStream(found, **OPTIONS), 12) == seen(expected, 12)
    data = DataSettings.model_validate({"mix": [{"path": "https://example.org/x"}]})
    with pytest.raises(UserError, match="--trust-urls"):
        storage_of(data, trust_urls=False)


def test_a_saved_cursor_is_of_its_sets_and_weights(sets: list[Path]) -> None:
    state = ImageStream(mixed(sets, 3, 1), **OPTIONS).state_dict()
    with pytest.raises(UserError, match="is not the shard set of this run"):
        ImageStream(mixed(sets, 1, 1), **OPTIONS).load_state_dict(state)


def test_sets_that_do_not_go_together(sets: list[Path], tmp_path: Path) -> None:
    convert(sets[0], tmp_path / "large", resolution=16)
    with pytest.raises(DataError, match=r"large has resolution 16, .*ours has 8"):
        mixed([sets[0], tmp_path / "large"], 1, 1).index()
    write_shards(tmp_path / "more", images=8, per_shard=4, classes=5)
    convert(tmp_path / "more", tmp_path / "five", resolution=8, channels=1)
    with pytest.raises(DataError, match=r"five has a class 3, .*ours has none of that name"):
        mixed([sets[0], tmp_path / "five"], 1, 1).index()
    assert len(mixed([tmp_path / "five", sets[0]], 1, 1).index().classes) == 5
    with pytest.raises(DataError, match="is less than one image of 10000"):
        mixed(sets, 1, 1e-6)


def test_images_before_one_comes_again(sets: list[Path]) -> None:
    for weights in ((3, 1), (1, 1), (20, 12)):
        stream = ImageStream(mixed(sets, *weights), batch=1, streams=1, seed=0)
        count = stream.order.distinct(0)
        values = [value for value, _ in seen(stream, count + 1)]
        assert len(set(values[:count])) == count
        assert values[count] in values[:count]
    orders = [EpochOrder([6000] * 4, streams=1, seed=s, window=3) for s in (0, 1)]
    order = MixedOrder(orders, [7000, 3000])
    count = order.distinct(0)
    assert count // BLOCK == 3  # 24,000 of 7,000 in each block
    assert int((order.sets(3, 0)[: count % BLOCK] == 0).sum()) == 3000


def test_a_sample_of_a_mixture_has_its_weights(sets: list[Path]) -> None:
    storage = mixed(sets, 3, 1)  # of 20 and 12 images
    index = storage.index()
    chosen = storage.sample(index)
    assert (chosen[:20].sum(), chosen[20:].sum()) == (19, 6)
    assert not chosen[20:26].all()  # not the first ones
    shares = storage.class_shares(index)
    assert shares == pytest.approx([0.75 * 7 / 20 + 0.25 / 3, 0.75 * 7 / 20 + 0.25 / 3,
                                    0.75 * 6 / 20 + 0.25 / 3])  # fmt: skip
