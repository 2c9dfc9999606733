"""References of every kind: the same images wherever they lie, and statistics that say what of."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from fasttrain.data import open_storage
from fasttrain.data.foreign import View
from fasttrain.data.mix import MixedStorage
from fasttrain.evaluation.collect import parts_of
from fasttrain.evaluation.extractors import load_extractor
from fasttrain.evaluation.metrics.statistics import Statistics, save_statistics
from fasttrain.evaluation.reference import ImageSet, known_statistics, open_images
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World
from fasttrain_data import DataError, convert, load_index
from fasttrain_data.indexing import run_indexing
from tests.foreign import write_shards

ALONE = World(0, 1, torch.device("cpu"))


def all_of(images: ImageSet, world: World = ALONE, batch: int = 32) -> Tensor:
    found = list(images.batches(parts_of(images.count, batch, world)))
    assert all(len(part) == len(pixels) for part, pixels in found)
    return torch.cat([pixels for _, pixels in found]) if found else torch.zeros(0, 1, 8, 8)


def test_a_folder_is_read_in_order_and_shards_hold_the_same_images(
    folder: Path, shards: Path
) -> None:
    files = [np.asarray(Image.open(path)) for path in sorted(folder.iterdir())]
    expected = torch.from_numpy(np.stack(files))[:, None].float() / 127.5 - 1
    images = open_images(folder)
    torch.testing.assert_close(all_of(images), expected)
    stored = open_images(shards)
    assert (images.count, images.size, stored.count, stored.size) == (150, 8, 150, 8)
    found = all_of(stored)
    assert not torch.equal(found, expected)  # shards are shuffled
    order = [torch.unique(x.flatten(1), dim=0) for x in (found, expected)]
    torch.testing.assert_close(*order)
    assert stored.protocol == {
        "data": "photos",
        "images": 150,
        "size": 8,
        "resized": False,
        "content": load_index(shards).content_sha256[:12],
    }


@pytest.mark.parametrize("size", [2, 3, 7])
@pytest.mark.parametrize("batch", [16, 64])
def test_processes_share_the_images_in_the_batches_of_one(
    shards: Path, size: int, batch: int
) -> None:
    images = open_images(shards)
    worlds = [World(rank, size, torch.device("cpu")) for rank in range(size)]
    parts = [part for world in worlds for part in parts_of(images.count, batch, world)]
    assert parts == parts_of(images.count, batch, ALONE)
    together = torch.cat([all_of(images, world, batch) for world in worlds])
    assert torch.equal(together, all_of(images))


def test_all_of_a_folder_is_used_also_with_a_class_named_train(tmp_path: Path) -> None:
    for name in ("cat", "dog", "train"):
        (tmp_path / name).mkdir()
        Image.new("L", (8, 8)).save(tmp_path / name / "a.png")
    assert open_images(tmp_path).count == 3


def test_shares_of_classes(tmp_path: Path) -> None:
    for label, count in (("a", 6), ("b", 2)):
        (tmp_path / "in" / label).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (8, 8), number).save(tmp_path / "in" / label / f"{number}.png")
    convert(tmp_path / "in", tmp_path / "out")
    for reference in (tmp_path / "in", tmp_path / "out"):
        assert list(open_images(reference).shares) == [0.75, 0.25]


def test_images_are_resized_only_when_asked(folder: Path, tmp_path: Path) -> None:
    larger = open_images(folder, resolution=16)
    assert larger.size == 16
    assert larger.protocol["resized"]
    assert all_of(larger).shape == (150, 1, 16, 16)
    assert not open_images(folder, resolution=8).protocol["resized"]  # they have that size
    Image.new("L", (9, 9)).save(tmp_path / "a.png")
    Image.new("L", (8, 8)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png is 8x8 but .*a\.png is 9x9.*--resolution"):
        open_images(tmp_path)
    made = open_images(tmp_path, resolution=8)
    assert (made.count, made.protocol["resized"]) == (2, True)


def content(images: ImageSet, worlds: list[World]) -> str:
    """After each process has read its share."""
    shares = []
    for world in worlds:
        all_of(images, world)
        shares.append(b"".join(images.digests))  # type: ignore[attr-defined]
    images.seal(SimpleNamespace(gather=lambda share: shares))  # type: ignore[arg-type]
    return str(images.protocol["content"])


def test_the_content_of_files_is_that_of_their_pixels(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    for path in copy.iterdir():
        path.rename(path.with_name("x" + path.name))
    found = {content(open_images(path), [ALONE]) for path in (folder, copy)}
    three = [World(rank, 3, torch.device("cpu")) for rank in range(3)]
    found.add(content(open_images(folder), three))
    assert len(found) == 1
    first = copy / "x0000.png"
    size = first.stat().st_size
    pixels = np.asarray(Image.open(first)).copy()
    pixels[0, 0] ^= 1
    Image.fromarray(pixels).save(first)
    data = first.read_bytes()  # the same name and size, as far as PNG lets it
    first.write_bytes(data + b"\0" * max(0, size - len(data)))
    changed = content(open_images(copy), [ALONE])
    assert changed not in found
    assert content(open_images(folder, resolution=16), [ALONE]) not in {*found, changed}


def test_a_reference_must_be_whole(tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.new("L", (8, 8)).save(tmp_path / f"{name}.png")
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "b.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "b.png").read_bytes()[:60])
    with pytest.raises(DataError, match=r"b\.png: damaged image: fix or remove it"):
        all_of(open_images(tmp_path))
    with pytest.raises(DataError, match="no images at"):
        open_images(tmp_path / "nothing")


def statistics(width: int, protocol: dict[str, object]) -> Statistics:
    wide = torch.eye(width, dtype=torch.float64)
    return Statistics(torch.zeros(width, dtype=torch.float64), wide, 9, protocol)


def test_statistics_are_taken_for_the_features_that_they_are_of(tmp_path: Path) -> None:
    extractor = load_extractor("lite2")
    about = dict.fromkeys(("data", "images", "size", "resized", "content"), 1)
    path = tmp_path / "ref.npz"
    save_statistics(path, statistics(1280, {"extractor": extractor.protocol, "reference": about}))
    known = known_statistics(path, extractor)
    assert known.protocol == about
    assert known.statistics.images == 9
    for change in ({"weights": "0" * 12}, {"resolution": 96}, {"extractor": "inception"}):
        theirs = {"extractor": extractor.protocol | change, "reference": about}
        save_statistics(path, statistics(1280, theirs))
        with pytest.raises(
            UserError, match=rf"has other features \(.*{next(iter(change.values()))}"
        ):
            known_statistics(path, extractor)
    save_statistics(path, statistics(1280, {"extractor": extractor.protocol, "reference": {}}))
    with pytest.raises(UserError, match="does not record its images"):
        known_statistics(path, extractor)


def test_statistics_that_say_nothing_are_taken_to_be_inceptions(tmp_path: Path) -> None:
    path = tmp_path / "edm.npz"
    np.savez(path, mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match=r"2048 features .* choose the extractor inception"):
        known_statistics(path, load_extractor("lite2"))
    inception = load_extractor("lite2")
    inception.width, inception.protocol = 2048, {"extractor": "inception"}
    inception.unnamed_statistics = True
    known = known_statistics(path, inception)
    assert known.protocol["data"] == "edm.npz"
    assert known.protocol["images"] is None
    np.savez(tmp_path / "other.npz", mu=np.ones(2048), sigma=np.eye(2048))
    other = known_statistics(tmp_path / "other.npz", inception)
    assert other.protocol["content"] != known.protocol["content"]
    np.savez(path, mu=np.zeros(1280), sigma=np.eye(1280))
    with pytest.raises(UserError, match="1280 features an image and does not record which"):
        known_statistics(path, inception)


def test_tars_of_others_and_a_mixture_are_references(tmp_path: Path, shards: Path) -> None:
    folder = write_shards(tmp_path / "tars", images=26, per_shard=6)
    run_indexing(str(folder), workers=1, out=tmp_path / "index")
    view = View(resolution=8, channels=1)
    tars = open_storage(folder, view=view, index=tmp_path / "index")
    found = all_of(open_images(tars))
    values = found[:, 0, 0, 0].add(1).mul(127.5).round().int()
    assert sorted(values.tolist()) == list(range(26))
    parts = [open_storage(shards), open_storage(folder, view=view, index=tmp_path / "index")]
    mixture = open_images(MixedStorage(parts, [1, 1]))  # of 150 and 26 images
    assert mixture.count == 52
    found = all_of(mixture)
    flat = (found.flatten(1) == found[:, 0, 0, :1]).all(1)
    assert int(flat.sum()) == 26
    three = [World(rank, 3, torch.device("cpu")) for rank in range(3)]
    assert torch.equal(torch.cat([all_of(mixture, world) for world in three]), found)
