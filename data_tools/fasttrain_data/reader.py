"""Reading shards that may be hostile: exactly the tar files that `writer.py` makes, nothing else.

A general tar reader follows sparse maps (10 KB can ask for 6 GB), extended headers, links and
names with folders, and `webdataset`'s `.decode()` runs code that a member brings. This reader is a
stream over 512-byte blocks that accepts plain regular members named `KEY.png` and `KEY.cls`, of
bounded size, in pairs; everything else is a DataError that names the shard and the member.

    for record in read_records(file, name="shard-000000.tar"):
        record.key, record.image, record.label
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError
from fasttrain_data.images import decode_png
from fasttrain_data.index import Index, ShardInfo, check_shard_file

__all__ = ["Record", "decode_record", "open_shard", "read_records"]

BLOCK = 512
MAX_MEMBER_BYTES = 64 << 20
_CAPS = {"png": MAX_MEMBER_BYTES, "cls": 16}
_NAME = re.compile(rb"([A-Za-z0-9_-]{1,64})\.(png|cls)\Z")
_OCTAL = re.compile(rb" *([0-7]{1,11})[ \0]*\Z")
_LABEL = re.compile(rb"[0-9]{1,9}\Z")
_KINDS = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"5": "a folder",
    b"6": "a FIFO",
    b"S": "a sparse file",
    b"L": "a long-name header",
    b"K": "a long-link header",
    b"x": "an extended header",
    b"g": "a global header",
}


class Record(NamedTuple):
    """One image of a shard: its key, the encoded bytes, and its label."""

    key: str
    image: bytes
    label: int


@contextmanager
def open_shard(folder: str | Path, shard: ShardInfo, *, check_hash: bool) -> Iterator[BinaryIO]:
    """Open a shard, its size checked and, with `check_hash`, its SHA-256 too, in constant memory.

    The bytes that were hashed are the bytes that are read: it is one open file.
    Raises DataError, OSError.
    """
    path = Path(folder) / shard.name
    check_shard_file(path, shard)
    with path.open("rb") as file:
        if check_hash:
            if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                raise DataError(
                    f"{path} does not have the SHA-256 of its index: copy or convert it again"
                )
            file.seek(0)
        yield file


def read_records(file: BinaryIO, *, name: str) -> Iterator[Record]:
    """Yield the records of a shard in order. `name` is used in errors only. Raises DataError."""
    members = _members(file, name)
    for key, extension, image in members:
        if extension != "png":
            raise DataError(f"{name}: label {key}.cls has no image before it")
        mate = next(members, None)
        if mate is None or mate[:2] != (key, "cls"):
            raise DataError(f"{name}: image {key}.png has no label after it")
        if not _LABEL.match(mate[2]):
            raise DataError(f"{name}: {key}.cls is not a class number")
        yield Record(key, image, int(mate[2]))


def decode_record(record: Record, index: Index, *, name: str) -> npt.NDArray[np.uint8]:
    """Decode a record to uint8 [H, W, C] and check it against the index. Raises DataError."""
    if record.label >= len(index.classes):
        raise DataError(
            f"{name}: {record.key}.cls is label {record.label}, "
            f"the index has {len(index.classes)} classes"
        )
    return decode_png(
        record.image,
        resolution=index.resolution,
        channels=index.channels,
        where=f"{name}: {record.key}.png",
    )


def _members(file: BinaryIO, name: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield (key, extension, content) of each member up to the end mark."""
    while True:
        header = _read(file, BLOCK, name)
        if not header.strip(b"\0"):
            if _read(file, BLOCK, name).strip(b"\0"):
                raise DataError(f"{name}: damaged end mark")
            return
        key, extension, size = _parse_header(header, name)
        content = _read(file, size, name)
        _read(file, -size % BLOCK, name)
        yield key, extension, content


def _read(file: BinaryIO, size: int, name: str) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise DataError(f"{name} is truncated: copy or convert it again")
    return data


def _parse_header(block: bytes, name: str) -> tuple[str, str, int]:
    """Check a member's header block; return key, extension and size in bytes."""
    label = block[:100].rstrip(b"\0")
    shown = label.decode("ascii", "backslashreplace").encode("unicode_escape").decode()
    expected = _OCTAL.match(block[148:156])
    if expected is None or int(expected[1], 8) != sum(block) - sum(block[148:156]) + 256:
        raise DataError(f"{name}: damaged header: copy or convert it again")
    kind = block[156:157]
    if kind not in (b"0", b"\0"):
        what = _KINDS.get(kind, f"of type {kind!r}")
        raise DataError(f"{name}: member {shown!r} is {what}: only regular files are read")
    match = _NAME.match(label)
    if match is None or block[345:500].strip(b"\0"):
        raise DataError(f"{name}: member name {shown!r} is not KEY.png or KEY.cls")
    size = _OCTAL.match(block[124:136])
    if size is None:
        raise DataError(f"{name}: member {shown!r} has no plain size")
    extension = match[2].decode()
    if int(size[1], 8) > _CAPS[extension]:
        raise DataError(
            f"{name}: member {shown!r} claims {int(size[1], 8)} bytes, "
            f"more than the {_CAPS[extension]} allowed"
        )
    return match[1].decode(), extension, int(size[1], 8)
