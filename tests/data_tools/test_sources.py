"""Every kind of source: the right pixels with the right labels, whatever it is stored as."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from fasttrain_data import DataError, convert, load_index, split, verify
from tests.data_tools.sources import (
    KINDS,
    Images,
    content,
    expected,
    make_zip,
    png,
    write_cifar,
    write_idx,
)
from tests.hostile.files import tar_of


@pytest.mark.parametrize("record", ["png", "webp", "raw"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_source_gives_its_pixels_and_labels(
    tmp_path: Path, images: Images, kind: str, record: str
) -> None:
    source = KINDS[kind](tmp_path, images)
    index = convert(source, tmp_path / "set", record=record, images_per_shard=4)
    assert content(tmp_path / "set") == expected(images)
    assert [shard.images for shard in index.shards] == [4, 3]
    assert verify(tmp_path / "set") == index
    assert str(tmp_path) not in (tmp_path / "set/index.json").read_text()


def test_the_content_does_not_depend_on_storage_workers_or_shards(
    tmp_path: Path, images: Images
) -> None:
    source = make_zip(tmp_path, images)
    made = [
        convert(source, tmp_path / f"{record}-{workers}", record=record, workers=workers, **more)
        for record in ("png", "webp", "raw")
        for workers, more in ((1, {"images_per_shard": 3}), (2, {"images_per_shard": 1}))
    ]
    assert len({index.content_sha256 for index in made}) == 1
    one = convert(source, tmp_path / "one", workers=1, images_per_shard=2)
    two = convert(source, tmp_path / "two", workers=2, images_per_shard=2)
    assert one == two
    other = convert(source, tmp_path / "seed", seed=1)
    assert other.content_sha256 != one.content_sha256


@pytest.mark.parametrize("channels", [1, 3])
def test_webdataset_itself_decodes_every_kind_of_record(
    tmp_path: Path, images: Images, channels: int
) -> None:
    source = make_zip(tmp_path, images)
    wanted = convert(source, tmp_path / "png", channels=channels)
    truth = content(tmp_path / "png")
    names = [info.name for info in wanted.classes]
    for record, handler in (("png", "pil"), ("webp", "pil"), ("raw", None)):
        folder = tmp_path / f"{record}-set"
        index = convert(source, folder, channels=channels, record=record, images_per_shard=4)
        urls = [str(folder / shard.name) for shard in index.shards]
        dataset = webdataset.WebDataset(urls, shardshuffle=False)
        found = []
        for sample in dataset.decode(handler) if handler else dataset.decode():
            if record == "raw":
                pixels, labels = sample["images.npy"], sample["labels.npy"]
                pairs = zip(pixels.transpose(0, 2, 3, 1), labels, strict=True)
            else:
                image = sample[record].convert("L" if channels == 1 else "RGB")
                pairs = [(np.asarray(image), sample["cls"])]
            found += [(names[int(label)], np.asarray(p).tobytes()) for p, label in pairs]
        assert sorted(found) == truth


@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files(tmp_path: Path, rng: np.random.Generator, ending: str) -> None:
    pixels = rng.integers(0, 256, (9, 5, 5), dtype=np.uint8)
    labels = np.arange(9) % 3
    folder = write_idx(tmp_path / "idx", pixels, labels, ending)
    index = convert(folder, tmp_path / "set", split="test")
    assert index.channels == 1
    wanted = sorted((str(k), p.tobytes()) for p, k in zip(pixels, labels, strict=True))
    assert content(tmp_path / "set") == wanted
    big = convert(folder, tmp_path / "big", resolution=8, crop="none")
    assert (big.resolution, big.images) == (8, 9)
    with pytest.raises(DataError, match="IDX files have train and test"):
        convert(folder, tmp_path / "x", split="valid")


@pytest.mark.parametrize("protocol", [2, 4])
def test_cifar_batches_as_folder_and_as_tar_gz(
    tmp_path: Path, rng: np.random.Generator, protocol: int
) -> None:
    pixels = rng.integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    labels = [int(n) for n in rng.integers(0, 2, 10)]
    folder = write_cifar(tmp_path / "cifar-10-batches-py", pixels, labels, protocol)
    index = convert(folder, tmp_path / "set")
    names = ("cat", "dog")
    wanted = sorted((names[k], p.tobytes()) for p, k in zip(pixels, labels, strict=True))
    assert content(tmp_path / "set") == wanted
    members = {f"cifar-10-batches-py/{f.name}": f.read_bytes() for f in folder.iterdir()}
    packed = tmp_path / "cifar-10-python.tar.gz"
    packed.write_bytes(gzip.compress(tar_of(members)))
    assert convert(packed, tmp_path / "packed").content_sha256 == index.content_sha256
    assert convert(packed, tmp_path / "test", split="test").images == 1


def emoji_files(images: Images) -> dict[str, bytes]:
    rows, files = [], {}
    for number, pixels in enumerate(images["0"]):
        rows.append({"image": f"{number}.png", "category": "Faces", "skin_variations": {}})
        files[f"img/google/64/{number}.png"] = png(pixels)
    rows[0]["skin_variations"] = {"1F3FB": {"image": "tone.png"}, "1F3FC": {"image": "gone.png"}}
    files["img/google/64/tone.png"] = png(images["1"][0])
    files["img/google/64/unknown.png"] = b"not named, not read"
    files["img/google/sheets/64.png"] = b"a sheet"
    return {**files, "emoji.json": json.dumps(rows).encode()}


def test_emoji_packages_packed_and_unpacked(tmp_path: Path, images: Images) -> None:
    files = emoji_files(images)
    packed = tmp_path / "emoji-datasource-google-1.0.0.tgz"
    packed.write_bytes(gzip.compress(tar_of({f"package/{k}": v for k, v in files.items()})))
    for name, data in files.items():
        (tmp_path / "unpacked" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "unpacked" / name).write_bytes(data)
    wanted = sorted(("Faces", p.tobytes()) for p in [*images["0"], images["1"][0]])
    one = convert(packed, tmp_path / "one")
    assert content(tmp_path / "one") == wanted
    assert convert(tmp_path / "unpacked", tmp_path / "two").content_sha256 == one.content_sha256


def test_adm_crop_is_box_then_bicubic_then_centre(tmp_path: Path, rng: np.random.Generator) -> None:
    pixels = rng.integers(0, 256, (41, 70, 3), dtype=np.uint8)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/x.png").write_bytes(png(pixels))
    convert(tmp_path / "in", tmp_path / "set", resolution=16, crop="adm")
    # Written out: 70x41 -> 35x20 by boxes; 16/20 of it is 28x16, bicubic; columns 6 to 22.
    half = Image.fromarray(pixels).resize((35, 20), Image.Resampling.BOX)
    small = np.asarray(half.resize((28, 16), Image.Resampling.BICUBIC))[:, 6:22]
    assert content(tmp_path / "set") == [("images", small.tobytes())]
    with pytest.raises(DataError, match=r"x\.png: not square"):
        convert(tmp_path / "in", tmp_path / "none", resolution=16, crop="none")


def test_split_takes_the_share_of_each_class_and_loses_nothing(
    tmp_path: Path, rng: np.random.Generator
) -> None:
    many = {
        name: [rng.integers(0, 256, (4, 4, 3), dtype=np.uint8) for _ in range(count)]
        for name, count in (("0", 20), ("1", 10))
    }
    convert(make_zip(tmp_path, many), tmp_path / "set", record="raw", images_per_shard=7)
    held, rest = split(tmp_path / "set", tmp_path / "held", tmp_path / "rest", share=0.2)
    assert [info.images for info in held.classes] == [4, 2]
    assert [info.images for info in rest.classes] == [16, 8]
    assert sorted(content(tmp_path / "held") + content(tmp_path / "rest")) == expected(many)
    assert (held.record, held.options["images_per_shard"]) == ("raw", 7)
    for share in (0, 1):
        with pytest.raises(DataError, match="--share"):
            split(tmp_path / "set", tmp_path / "x", tmp_path / "y", share=share)
    with pytest.raises(DataError, match="named twice"):
        split(tmp_path / "set", tmp_path / "x", tmp_path / "x", share=0.5)
    places = (tmp_path / "set", tmp_path / "held", tmp_path / "rest")
    with pytest.raises(DataError, match=r"other shards.*--force|other options.*--force"):
        split(*places, share=0.4)
    assert [part.images for part in split(*places, share=0.4, force=True)] == [12, 18]
    with pytest.raises(DataError, match="choose another place"):
        split(places[0], places[0], places[2], share=0.4, force=True)
    assert load_index(places[0]).images == 30
