"""Every kind of source: the right pixels with the right labels, whatever it is stored as, and one
clear line for what is wrong with it."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import webdataset
from PIL import Image

from fasttrain_data import (
    DataError,
    Options,
    convert,
    decode_record,
    load_index,
    open_shard,
    read_records,
    run_conversion,
    split,
    verify,
)
from fasttrain_data.sources import open_source

Images = dict[str, list[np.ndarray]]


def content(folder: Path) -> list[tuple[str, bytes]]:
    """(class, pixels) of every record, sorted."""
    index = load_index(folder)
    found = []
    for shard in index.shards:
        with open_shard(folder, shard, check_hash=True) as file:
            for record in read_records(file, index, name=shard.name):
                pixels = decode_record(record, index, name=shard.name)
                found.append((index.classes[record.label].name, pixels.tobytes()))
    return sorted(found)


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, kind)
    return buffer.getvalue()


@pytest.fixture
def images(rng: np.random.Generator) -> Images:
    """Seven colour images of 6x6 in two classes."""
    return {
        name: [rng.integers(0, 256, (6, 6, 3), dtype=np.uint8) for _ in range(count)]
        for name, count in (("0", 4), ("1", 3))
    }


def expected(images: Images) -> list[tuple[str, bytes]]:
    return sorted((name, each.tobytes()) for name, group in images.items() for each in group)


def named(images: Images) -> dict[str, tuple[bytes, int]]:
    """File name -> PNG and label, as EDM's dataset tool names them."""
    pairs = [(each, int(name)) for name, group in images.items() for each in group]
    return {f"00000/img{n:08d}.png": (png(p), label) for n, (p, label) in enumerate(pairs)}


def write_zip(path: Path, members: dict[str, bytes], method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return path


def edm_members(images: Images) -> dict[str, bytes]:
    files = named(images)
    table = {"labels": [[name, label] for name, (_, label) in files.items()]}
    return {
        "dataset.json": json.dumps(table).encode(),
        **{name: data for name, (data, _) in files.items()},
    }


def tar_bytes(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def make_zip(root: Path, images: Images) -> Path:
    return write_zip(root / "edm.zip", edm_members(images))


def make_deflated(root: Path, images: Images) -> Path:
    return write_zip(root / "edm.zip", edm_members(images), zipfile.ZIP_DEFLATED)


def make_edm_folder(root: Path, images: Images) -> Path:
    for name, data in edm_members(images).items():
        (root / "edm" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "edm" / name).write_bytes(data)
    return root / "edm"


def make_nested_tar(root: Path, images: Images) -> Path:
    inner = {
        f"{name}.tar": tar_bytes({f"{name}_{n}.png": png(p) for n, p in enumerate(group)})
        for name, group in images.items()
    }
    (root / "ILSVRC2012_img_train.tar").write_bytes(tar_bytes(inner))
    return root / "ILSVRC2012_img_train.tar"


def make_class_tars(root: Path, images: Images) -> Path:
    (root / "tars").mkdir()
    for name, group in images.items():
        members = {f"{name}_{n}.png": png(p) for n, p in enumerate(group)}
        (root / "tars" / f"{name}.tar").write_bytes(tar_bytes(members))
    return root / "tars"


def make_parquet(root: Path, images: Images) -> Path:
    rows = [(png(p), int(name)) for name, group in images.items() for p in group]
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["0", "1"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (root / "table/data").mkdir(parents=True)
    for part, chosen in enumerate((rows[:3], rows[3:])):
        columns = {
            "image": pyarrow.array([{"bytes": data, "path": "x.png"} for data, _ in chosen]),
            "label": pyarrow.array([label for _, label in chosen], pyarrow.int64()),
        }
        table = pyarrow.table(columns).replace_schema_metadata(metadata)
        name = f"train-{part:05d}-of-00002.parquet"
        pyarrow.parquet.write_table(table, root / "table/data" / name, row_group_size=2)
    other = pyarrow.table({"image": [b"not read"], "label": [0]})
    pyarrow.parquet.write_table(other, root / "table/data/test-00000-of-00001.parquet")
    return root / "table"


def make_shards(root: Path, images: Images) -> Path:
    convert(make_zip(root, images), root / "made", images_per_shard=3, record="webp")
    return root / "made"


def make_raw(root: Path, images: Images) -> Path:
    convert(make_zip(root, images), root / "made", images_per_shard=3, record="raw", seed=4)
    return root / "made"


KINDS: dict[str, Callable[[Path, Images], Path]] = {
    "zip": make_zip,
    "deflated zip": make_deflated,
    "EDM folder": make_edm_folder,
    "nested tar": make_nested_tar,
    "folder of class tars": make_class_tars,
    "parquet": make_parquet,
    "WebP shards": make_shards,
    "raw shards": make_raw,
}


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


def write_idx(folder: Path, pixels: np.ndarray, labels: np.ndarray, ending: str = "") -> Path:
    folder.mkdir(exist_ok=True)
    for name, array in (("images-idx3-ubyte", pixels), ("labels-idx1-ubyte", labels)):
        head = bytes([0, 0, 8, array.ndim]) + b"".join(struct.pack(">I", n) for n in array.shape)
        data = head + array.astype(np.uint8).tobytes()
        data = gzip.compress(data) if ending else data
        for prefix in ("train", "t10k"):
            (folder / f"{prefix}-{name}{ending}").write_bytes(data)
    return folder


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


def test_bad_idx_files_are_named(tmp_path: Path) -> None:
    good = write_idx(tmp_path / "idx", np.zeros((4, 5, 5)), np.zeros(4))
    file = good / "train-images-idx3-ubyte"
    data = file.read_bytes()
    for bad, message in (
        (data[:-1], "cut short: 99 of 100 bytes"),
        (data[:4] + b"\xff" * 12 + data[16:], "too large"),
        (b"\0\0\x0d\x03" + data[4:], "not an IDX file of bytes"),
        (b"", "not an IDX file"),
        (data[:4] + struct.pack(">III", 2, 10, 5) + data[16:], "not the images and the labels"),
    ):
        file.write_bytes(bad)
        with pytest.raises(DataError, match=message) as caught:
            open_source(good)
        assert "\n" not in str(caught.value)
    file.unlink()
    file.with_name(file.name + ".gz").write_bytes(gzip.compress(data)[:20])
    with pytest.raises(DataError, match="cannot be read"):
        open_source(good)
    bomb = data[:4] + struct.pack(">III", 1, 5, 5) + bytes(100 << 20)
    file.with_name(file.name + ".gz").write_bytes(gzip.compress(bomb, 1))
    with pytest.raises(DataError, match="not the images and the labels"):
        open_source(good)  # what the header does not claim is not unpacked


def cifar_batch(pixels: np.ndarray, labels: list[int], protocol: int) -> bytes:
    flat = pixels.transpose(0, 3, 1, 2).reshape(len(pixels), -1)
    keys = {
        "data": np.ascontiguousarray(flat),
        "labels": labels,
        "filenames": ["x.png"] * len(labels),
    }
    return pickle.dumps({k.encode(): v for k, v in keys.items()}, protocol)


def write_cifar(folder: Path, pixels: np.ndarray, labels: list[int], protocol: int = 2) -> Path:
    folder.mkdir(exist_ok=True)
    for number in range(1, 6):
        part = slice(number - 1, None, 5)
        batch = cifar_batch(pixels[part], labels[part], protocol)
        (folder / f"data_batch_{number}").write_bytes(batch)
    (folder / "test_batch").write_bytes(cifar_batch(pixels[:1], labels[:1], protocol))
    meta = {b"label_names": [b"cat", b"dog"], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol))
    return folder


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
    packed.write_bytes(gzip.compress(tar_bytes(members)))
    assert convert(packed, tmp_path / "packed").content_sha256 == index.content_sha256
    assert convert(packed, tmp_path / "test", split="test").images == 1


class _Evil:
    def __reduce__(self) -> Any:
        return (eval, ("open('pwned', 'w')",))


HOSTILE_PICKLES = {
    "a call": pickle.dumps({b"data": _Evil()}),
    "a huge memo": b"\x80\x02r\xff\xff\xff\x7f.",
    "a huge memo in text": b"\x80\x02}p2147483647\n.",
    "a huge bytearray": b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b".",
    "a huge string": b"\x80\x02T\xff\xff\xff\x7f.",
    "a persistent id": b"\x80\x02Px\n.",
    "no dictionary": pickle.dumps([1]),
    "an object array": pickle.dumps({b"data": np.array([{}], dtype=object), b"labels": [0]}, 2),
    "nothing": b"",
}


@pytest.mark.parametrize("name", HOSTILE_PICKLES)
def test_hostile_pickles_run_nothing(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = write_cifar(tmp_path / "cifar", np.zeros((5, 32, 32, 3), np.uint8), [0] * 5)
    (folder / "data_batch_3").write_bytes(HOSTILE_PICKLES[name])
    with pytest.raises(DataError, match=r"CIFAR-10's batches") as caught:
        open_source(folder)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


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
    packed.write_bytes(gzip.compress(tar_bytes({f"package/{k}": v for k, v in files.items()})))
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


def test_bad_files_are_listed_in_a_file_by_their_name_in_the_source(
    tmp_path: Path, images: Images
) -> None:
    members = edm_members(images)
    members["00000/img00000002.png"] = b"no image"
    source = write_zip(tmp_path / "edm.zip", members)
    for workers in (1, 2):
        done = run_conversion(
            source,
            tmp_path / f"set-{workers}",
            Options(resolution=6, channels=3, images_per_shard=2),
            max_bad=1,
            workers=workers,
        )
        assert done.bad_files == ((f"{source}/00000/img00000002.png", "not an image"),)
        rows = (tmp_path / f"set-{workers}/skipped.jsonl").read_text().splitlines()
        assert [json.loads(row) for row in rows] == [
            {"file": "00000/img00000002.png", "reason": "not an image"}
        ]
        assert verify(tmp_path / f"set-{workers}").skipped == {"not an image": 1}
    names = [[s.name for s in load_index(tmp_path / f"set-{n}").shards] for n in (1, 2)]
    assert names[0] == names[1] == [f"shard-{n:06d}.tar" for n in range(len(names[0]))]


def test_a_shard_of_bad_files_alone_leaves_no_gap(tmp_path: Path, images: Images) -> None:
    members = edm_members(images)
    for number in (0, 3, 5):
        members[f"00000/img{number:08d}.png"] = b"no image"
    source = write_zip(tmp_path / "edm.zip", members)
    options = Options(resolution=6, channels=3, images_per_shard=1)
    index = run_conversion(source, tmp_path / "set", options, max_bad=3).index
    assert [shard.name for shard in index.shards] == [f"shard-{n:06d}.tar" for n in range(4)]
    assert verify(tmp_path / "set").images == 4


def damage_zip(path: Path, data: bytearray, kind: str) -> None:
    directory = data.rindex(b"PK\x01\x02")  # of the last member
    if kind == "another size":
        data[directory + 24 : directory + 28] = struct.pack("<I", 10)
    elif kind == "huge":
        data[directory + 20 : directory + 28] = struct.pack("<II", 1 << 31, 1 << 31)
    elif kind == "another checksum":
        data[directory + 16] ^= 1
    elif kind == "encrypted":
        data[directory + 8] |= 1
    elif kind == "LZMA":
        data[directory + 10 : directory + 12] = struct.pack("<H", 14)
    elif kind == "elsewhere":
        data[directory + 42 : directory + 46] = struct.pack("<I", 7)
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("another size", "damaged zip member"),
        ("huge", "more than 64 MiB"),
        ("another checksum", "damaged zip member"),
        ("encrypted", "encrypted"),
        ("LZMA", "another method"),
        ("elsewhere", "damaged zip member"),
    ],
)
def test_damaged_zip_members_are_bad_files(
    tmp_path: Path, images: Images, kind: str, reason: str
) -> None:
    source = make_zip(tmp_path, images)
    damage_zip(source, bytearray(source.read_bytes()), kind)
    with pytest.raises(DataError, match=rf"img00000006\.png: .*{reason}"):
        convert(source, tmp_path / "set")
    assert convert(source, tmp_path / "set", max_bad=1).images == 6


def test_places_that_hold_nothing_usable_are_named(tmp_path: Path, images: Images) -> None:
    (tmp_path / "bad.zip").write_bytes(b"PK\x03\x04" + bytes(100))
    (tmp_path / "x.tar").write_bytes(b"\1" * 2048)
    (tmp_path / "x.parquet").write_bytes(b"PAR1" + bytes(100))
    (tmp_path / "x.tgz").write_bytes(gzip.compress(tar_bytes({"package/readme": b"hi"})))
    (tmp_path / "y.tgz").write_bytes(gzip.compress(tar_bytes({"cat/1.png": b"hi"})))
    (tmp_path / "x.txt").write_bytes(b"hello")
    for name, message in (
        ("bad.zip", "not a sound zip file"),
        ("x.tar", "damaged header"),
        ("x.parquet", "not a sound table"),
        ("x.tgz", "no package/emoji.json"),
        ("y.tgz", r"a compressed tar: unpack it, and name the folder: mkdir y && tar -xzf .*y.tgz"),
        ("x.txt", "neither a zip, a tar nor a parquet file"),
        ("nowhere", "no images at"),
    ):
        with pytest.raises(DataError, match=message) as caught:
            open_source(tmp_path / name)
        assert "\n" not in str(caught.value)
    for table, message in (
        ({"labels": [["a.png", 0.5]]}, "is not"),
        ({"labels": "x"}, "is not"),
        ({"labels": [["gone.png", 0]]}, "names gone.png, which is not there"),
        ([], "is not"),
    ):
        members = {**edm_members(images), "dataset.json": json.dumps(table).encode()}
        with pytest.raises(DataError, match=message):
            open_source(write_zip(tmp_path / "edm.zip", members))
    table = pyarrow.table({"image": [b"x", None], "label": [0, -1]})
    pyarrow.parquet.write_table(table, tmp_path / "labels.parquet")
    with pytest.raises(DataError, match="holds no class numbers or names"):
        open_source(tmp_path / "labels.parquet")


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
