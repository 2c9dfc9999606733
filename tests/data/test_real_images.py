"""Real images one after the other: the order of one stream, however many are taken at once."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from fasttrain.data import ImageStream, RealImages, Remote, open_storage
from fasttrain.data.foreign import View
from fasttrain.data.order import ScatteredOrder
from fasttrain.evaluation.reference import Head
from fasttrain.settings import DataSettings, NetworkSettings
from fasttrain.system.errors import UserError
from fasttrain_data.indexing import run_indexing
from tests.foreign import write_sorted


def test_they_come_in_the_order_of_one_stream_once_an_epoch(shards: Path) -> None:
    whole = next(ImageStream(shards, batch=53, streams=1, seed=0))
    images = RealImages(shards)
    assert images.index.images == 53
    taken = [images.take(count) for count in (1, 20, 32)]
    assert torch.equal(torch.cat([batch.images for batch in taken]), whole.images)
    assert torch.equal(torch.cat([batch.class_labels for batch in taken]), whole.class_labels)
    assert torch.equal(torch.cat([batch.index for batch in taken]), torch.arange(53))
    assert sorted(whole.images[:, 0, 0, 0].tolist()) == list(range(53))
    assert not torch.equal(RealImages(shards, seed=1).take(53).images, whole.images)
    head = Head(RealImages(shards), 8)
    for first in (0, 8):  # the next ones, each time
        parts = list(head.batches([range(3), range(3, 8)]))
        assert [part for part, _ in parts] == [range(3), range(3, 8)]
        values = torch.cat([batch for _, batch in parts])
        assert torch.equal(values, whole.images[first : first + 8].float().div(127.5).sub(1))


def test_they_must_be_those_of_the_network(shards: Path) -> None:
    network = NetworkSettings(img_resolution=4, img_channels=1, label_dim=0)
    assert RealImages(shards, network=network).take(2).class_labels is None
    with pytest.raises(UserError, match="4x4"):
        RealImages(shards, network=network.model_copy(update={"img_resolution": 8}))


def test_those_of_a_run_are_read_as_its_settings_say(shards: Path) -> None:
    data = DataSettings(path=str(shards), max_skipped=3, reader_timeout=5)
    images = RealImages.of(data, seed=1)
    assert (images.stream.max_skipped, images.stream.reader_timeout) == (3, 5)
    assert torch.equal(images.take(5).images, RealImages(shards, seed=1).take(5).images)
    remote = data.model_copy(update={"path": "https://host/set"})
    with pytest.raises(UserError, match="add --trust-urls"):
        RealImages.of(remote, trust_urls=False)


@pytest.fixture(scope="module")
def sorted_tars(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,200 images of ten classes, one class after the other, in six tars."""
    folder = tmp_path_factory.mktemp("tars") / "sorted"
    write_sorted(folder, classes=10, each=120, per_shard=200)
    run_indexing(str(folder), workers=1)
    return folder


def of_tars(folder: Path, **options: int) -> RealImages:
    return RealImages(open_storage(folder, view=View(resolution=8, channels=1)), **options)


def classes_of(images: RealImages, count: int) -> list[int]:
    batch = images.take(count)
    assert batch.class_labels is not None
    labels = batch.class_labels.argmax(1)
    assert torch.equal(batch.images[:, 0, 0, 0].long(), labels)
    return labels.tolist()


def test_the_first_ones_of_tars_are_a_sample_however_these_are_sorted(sorted_tars: Path) -> None:
    first, second = (classes_of(of_tars(sorted_tars), 300) for _ in range(2))
    assert first == second
    assert all(15 <= first.count(label) <= 45 for label in range(10))  # 30 each
    assert first != sorted(first)
    assert classes_of(of_tars(sorted_tars, seed=1), 300) != first
    images = of_tars(sorted_tars)
    parts = classes_of(images, 100) + classes_of(images, 1100)
    assert parts[:300] == first
    assert all(parts.count(label) == 120 for label in range(10))  # each once an epoch
    assert classes_of(images, 300) != first  # of the next
    content = Head(of_tars(sorted_tars), 9).protocol["content"]
    assert content.endswith(", at random with seed 0")


def test_a_damaged_tar_is_left_out_of_the_sample(sorted_tars: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(sorted_tars, folder)
    tar = folder / "set-000002.tar"  # of the classes 3 and 4
    tar.write_bytes(tar.read_bytes()[:-1] + b"x")
    images = of_tars(folder, max_skipped=1000)
    found = classes_of(images, 900)
    counts = [found.count(label) for label in range(10)]
    assert counts[3] + counts[4] <= 40
    assert images.stream.skipped > 100
    (fault,) = set(images.stream.faults)
    assert fault.startswith(f"{tar} does not have the SHA-256 of its index")


def test_a_sample_of_many_tars_is_of_some_of_them_at_a_time() -> None:
    order = ScatteredOrder([3] * 69, seed=0, spread=64)
    groups = list(order.groups(0))
    assert [(first, len(shards)) for first, shards in groups] == [(0, 64), (3 * 64, 5)]
    assert sorted(shard for _, shards in groups for shard in shards) == list(range(69))
    assert order.choice == "at random of 64 of its 69 tars"


def test_the_tars_of_a_sample_have_room_in_the_cache(
    sorted_tars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of a server, which are downloaded; those of a folder are as many with any cache."""
    size = max(path.stat().st_size for path in sorted_tars.glob("*.tar"))
    view = View(resolution=8, channels=1)
    images = RealImages(open_storage(sorted_tars, Remote(cache_bytes=4 * size), view))
    assert Head(images, 9).protocol["content"].endswith(", at random with seed 0")
    monkeypatch.setattr("fasttrain.data.foreign.is_url", lambda _: True)
    order = images.stream.storage.order(
        images.index, streams=1, seed=0, window=None, resampled=False
    )
    assert order.choice == "at random of 2 of its 6 tars"
