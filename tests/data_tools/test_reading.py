"""The safe reader, the index and `verify`: every lie and every hostile member is named."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttrain_data import DataError, Index, VerificationError, load_index, read_records, verify
from fasttrain_data.records import encode_image as encode_png

PNG = encode_png(np.zeros((6, 6, 1), np.uint8))


def index_of(record: str, resolution: int = 6) -> Index:
    """An index of four images in two classes."""
    text = {
        "format_version": 2,
        "resolution": resolution,
        "channels": 1,
        "record": record,
        "classes": [{"name": "cats", "images": 4}, {"name": "dogs", "images": 0}],
        "images": 4,
        "shards": [
            {"name": "shard-000000.tar", "images": 4, "bytes": 10240, "sha256": "0" * 64},
        ],
        "content_sha256": "0" * 64,
        "source": {},
        "options": {},
    }
    return Index.model_validate_json(json.dumps(text))


INDEX = index_of("png")


def tar(*members: tuple[str, bytes], kind: bytes = tarfile.REGTYPE, **fields: object) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size, info.type = len(content), kind
            for field, value in fields.items():
                setattr(info, field, value)
            file.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def reheader(data: bytes, start: int, new: bytes) -> bytes:
    """Overwrite bytes of the first header and repair its checksum."""
    block = bytearray(data[:512])
    block[start : start + len(new)] = new
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block) + data[512:]


def sparse_tar() -> bytes:
    """A GNU sparse member: 512 bytes that claim to be 6 GB."""
    data = reheader(tar(("0.png", b"x" * 512)), 156, b"S")
    data = reheader(data, 257, b"ustar  \0")
    data = reheader(data, 386, b"00000000000\0" + b"00000001000\0")
    return reheader(data, 483, f"{6 << 30:011o}\0".encode())


def pax_tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as file:
        info = tarfile.TarInfo("0.png")
        info.pax_headers = {"GNU.sparse.size": str(6 << 30), "path": "/etc/passwd"}
        file.addfile(info)
    return buffer.getvalue()


HOSTILE: dict[str, tuple[bytes, str]] = {
    "symbolic link": (tar(("0.png", b""), kind=b"2", linkname="/etc/passwd"), "a symbolic link"),
    "hard link": (tar(("0.png", b""), kind=b"1", linkname="1.png"), "a hard link"),
    "device": (tar(("0.png", b""), kind=b"3"), "a character device"),
    "fifo": (tar(("0.png", b""), kind=b"6"), "a FIFO"),
    "folder": (tar(("0.png", b""), kind=b"5"), "a folder"),
    "sparse": (sparse_tar(), "a sparse file"),
    "extended header": (pax_tar(), "an extended header"),
    "long name": (tar(("0.png", b"x" * 5000), kind=b"L"), "a long-name header"),
    "unknown type": (tar(("0.png", b""), kind=b"Z"), "of type b'Z'"),
    "path traversal": (tar(("../../0.png", PNG)), r"'../../0.png' is not one of a shard"),
    "absolute path": (tar(("/0.png", PNG)), "'/0.png' is not one of a shard"),
    "prefix field": (reheader(tar(("0.png", PNG)), 345, b"/etc"), "is not one of a shard"),
    "pipe": (tar(("pipe:reboot.png", PNG)), "'pipe:reboot.png' is not one of a shard"),
    "pickle": (tar(("0.pkl", b"cos\nsystem\n")), "'0.pkl' is not one of a shard"),
    "newline in a name": (tar(("0\n.png", PNG)), r"'0\\\\n.png' is not one of a shard"),
    "huge size": (reheader(tar(("0.png", PNG)), 124, b"77777777777\0"), "claims 8589934591 bytes"),
    "base-256 size": (reheader(tar(("0.png", PNG)), 124, b"\x80" + b"\xff" * 11), "no plain size"),
    "huge label": (tar(("0.png", PNG), ("0.cls", b"1" * 17)), "claims 17 bytes"),
    "bad checksum": (b"1" + tar(("0.png", PNG))[1:], "damaged header"),
    "label without image": (tar(("0.cls", b"0")), "0.cls is not an image"),
    "image without label": (tar(("0.png", PNG)), "image 0.png has no label"),
    "another key's label": (tar(("0.png", PNG), ("1.cls", b"0")), "image 0.png has no label"),
    "label no number": (tar(("0.png", PNG), ("0.cls", b"-1")), "0.cls is not a class number"),
    "truncated header": (tar(("0.png", PNG), ("0.cls", b"0"))[:700], "truncated"),
    "no end mark": (tar(("0.png", PNG), ("0.cls", b"0"))[: 4 * 512], "truncated"),
    "damaged end mark": (b"\0" * 512 + b"x" * 512, "damaged end mark"),
    "empty file": (b"", "truncated"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_members_are_refused_without_allocation(name: str) -> None:
    data, message = HOSTILE[name]
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            list(read_records(io.BytesIO(data), INDEX, name="evil.tar"))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert message.replace("\\\\\\\\", "\\\\") in str(caught.value)
    assert "evil.tar" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert peak < 1 << 20


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_any_bytes_give_records_or_our_error(data: st.DataObject) -> None:
    good = bytearray(tar(("0.png", PNG), ("0.cls", b"0"), ("1.png", PNG), ("1.cls", b"1")))
    for _ in range(data.draw(st.integers(1, 4))):
        good[data.draw(st.integers(0, 2559))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(good)))
    try:
        for record in read_records(io.BytesIO(bytes(good[:cut])), INDEX, name="x"):
            assert len(record.image) == len(PNG)
    except DataError:
        pass


def edit(folder: Path, change: Callable[[dict], None]) -> None:
    index = json.loads((folder / "index.json").read_text())
    change(index)
    (folder / "index.json").write_text(json.dumps(index))


def replace_shard(folder: Path, data: bytes) -> None:
    """A new first shard that the index vouches for: what only decoding can find out."""
    (folder / "shard-000000.tar").write_bytes(data)

    def change(index: dict) -> None:
        index["shards"][0]["bytes"] = len(data)
        index["shards"][0]["sha256"] = hashlib.sha256(data).hexdigest()

    edit(folder, change)


def records(label: int = 0, png: bytes = PNG, count: int = 4) -> bytes:
    pairs = [[(f"{i}.png", png), (f"{i}.cls", str(label).encode())] for i in range(count)]
    return tar(*(member for pair in pairs for member in pair))


def test_verify_accepts_a_sound_set(shard_set: Path) -> None:
    assert verify(shard_set) == load_index(shard_set)


@pytest.mark.parametrize("position", [0, 600, -2000])
def test_verify_finds_a_flipped_bit(shard_set: Path, position: int) -> None:
    data = bytearray((shard_set / "shard-000001.tar").read_bytes())
    data[position] ^= 1
    (shard_set / "shard-000001.tar").write_bytes(data)
    with pytest.raises(VerificationError, match=r"shard-000001\.tar does not have the SHA-256"):
        verify(shard_set)


def test_verify_names_every_broken_shard(shard_set: Path) -> None:
    first = shard_set / "shard-000000.tar"
    first.write_bytes(first.read_bytes()[:-512])
    (shard_set / "shard-000002.tar").unlink()
    with pytest.raises(VerificationError, match=r"and 1 more") as caught:
        verify(shard_set)
    problems = caught.value.problems
    assert len(problems) == 2
    assert "shard-000000.tar has 9728 bytes, its index says 10240" in problems[0]
    assert "missing shard" in problems[1]
    assert "shard-000002.tar" in problems[1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (records(label=2), r": 0 has label 2, the index has 2 classes"),
        (records(png=encode_png(np.zeros((7, 7, 1), np.uint8))), r"0\.png is 7x7, the index .*6x6"),
        (records(png=encode_png(np.zeros((6, 6, 3), np.uint8))), r"0\.png does not have the 1 ch"),
        (records(png=PNG[: PNG.index(b"IDAT") + 6]), r"0\.png is a damaged PNG"),
        (records(png=b"GIF89a" + b"\0" * 60), r"0\.png is not a PNG"),
        (records(count=3), r"has 3 images, its index says 4"),
        (records(count=4), r"class cats has|content_sha256"),
        (tar(*[("0.png", PNG), ("0.cls", b"0")] * 4), r"the key 0 occurs twice"),
    ],
)
def test_verify_decodes_and_counts(shard_set: Path, data: bytes, message: str) -> None:
    replace_shard(shard_set, data)
    with pytest.raises(VerificationError, match=message):
        verify(shard_set)


def set_key(*path: str | int, value: object) -> Callable[[dict], None]:
    def change(index: dict) -> None:
        for step in path[:-1]:
            index = index[step]  # type: ignore[index]
        index[path[-1]] = value  # type: ignore[index]

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_key("shards", 0, "name", value="../../etc/passwd"), r"shards\.0\.name"),
        (set_key("shards", 0, "name", value="pipe:reboot"), r"shards\.0\.name"),
        (set_key("shards", 0, "name", value="shard-000000.tar\n"), r"shards\.0\.name"),
        (set_key("shards", 1, "name", value="shard-000000.tar"), "name occurs twice in shards"),
        (set_key("shards", 0, "images", value=10**12), "shards add up to"),
        (set_key("shards", 0, "sha256", value="0"), r"shards\.0\.sha256"),
        (set_key("images", value="12"), "images: "),
        (set_key("classes", 0, "images", value=8), "classes add up to 13 images, not to 12"),
        (set_key("resolution", value=10**6), "resolution: "),
        (set_key("channels", value=2), "channels: "),
        (set_key("shards", value=[]), "shards: "),
        (set_key("surprise", value=1), "surprise: "),
        (set_key("format_version", value=4), "format version 4.*update"),
        (set_key("format_version", value=1), "format_version: .*convert again"),
        (set_key("record", value="pickle"), "record: "),
    ],
)
def test_an_index_that_lies_is_refused(
    shard_set: Path, change: Callable[[dict], None], message: str
) -> None:
    edit(shard_set, change)
    with pytest.raises(DataError, match=message) as caught:
        load_index(shard_set)
    assert str(shard_set / "index.json") in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_hostile_count_cannot_ask_for_memory(shard_set: Path) -> None:
    def change(index: dict) -> None:
        index["shards"][0]["images"] = 10**12
        index["images"] = index["classes"][0]["images"] = 10**12 + 8
        index["classes"][1]["images"] = 0

    edit(shard_set, change)
    with pytest.raises(DataError, match=r"shard-000000\.tar: 10240 bytes cannot hold its images"):
        load_index(shard_set)


def test_a_url_is_not_taken_for_a_folder() -> None:
    with pytest.raises(DataError, match="set is a URL, which training alone"):
        load_index(Path("https://example.org/set"))


def test_a_missing_set_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_index(tmp_path / "x")
    assert str(caught.value) == (
        f"no shards at {tmp_path}/x: make them with `fasttrain-data convert SOURCE {tmp_path}/x`"
    )
    (tmp_path / "index.json").write_text("{")
    with pytest.raises(DataError, match=r"index\.json is not a valid index"):
        load_index(tmp_path)
