"""One clear line for what is wrong with a source, and a list of its bad files."""

from __future__ import annotations

import gzip
import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from fasttrain_data import DataError, Options, convert, load_index, run_conversion, verify
from fasttrain_data.sources import open_source
from tests.data_tools.sources import (
    Images,
    edm_members,
    make_zip,
    write_cifar,
    write_idx,
    write_zip,
)
from tests.hostile.files import tar_of


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
    (tmp_path / "x.tgz").write_bytes(gzip.compress(tar_of({"package/readme": b"hi"})))
    (tmp_path / "y.tgz").write_bytes(gzip.compress(tar_of({"cat/1.png": b"hi"})))
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
