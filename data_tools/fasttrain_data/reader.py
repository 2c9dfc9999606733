"""Reading shards that may be hostile: exactly the tar files that `writer.py` makes, nothing else.

`webdataset`'s `.decode()` runs code that a member brings, and a general tar reader can be made to
allocate without end. This reader is a stream over 512-byte blocks that accepts plain regular
members of the names in `records.py`, of bounded size, in pairs; everything else is a DataError that
names the shard and the member.

    for record in read_records(file, index, name="shard-000000.tar"):
        pixels = decode_record(record, index, name=...)    # uint8 [H, W, C]
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
from fasttrain_data.index import Index, ShardInfo, check_shard_file
from fasttrain_data.records import ENDINGS, MAX_RECORD_BYTES, decode_image, parse_npy
from fasttrain_data.tar import BLOCK, kind_of, parse_header, printable
from fasttrain_data.tar_index import TarView, decode_file

__all__ = ["Record", "decode_record", "open_shard", "read_records"]

_NAME = re.compile(rb"([A-Za-z0-9_-]{1,64})\.(png|webp|cls|images\.npy|latents\.npy|labels\.npy)\Z")
_LABEL = re.compile(rb"[0-9]{1,9}\Z")
_CAPS = {"cls": 16, "labels.npy": 1024}


class Record(NamedTuple):
    """One image of a shard: its key, its encoded bytes or a view of its raw pixels or of its
    latents' bytes, uint8 of the index's `shape`, and its label."""

    key: str
    image: bytes | npt.NDArray[np.uint8]
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
                raise DataError(f"{path} does not have the SHA-256 of its index: {shard.remedy}")
            file.seek(0)
        yield file


def read_records(file: BinaryIO, index: Index, *, name: str) -> Iterator[Record]:
    """Yield the records of a shard in order. `name` is used in errors only. Raises DataError."""
    image_ending, label_ending = ENDINGS[index.record]
    members = _members(file, name)
    for key, ending, image in members:
        if ending != image_ending:
            raise DataError(f"{name}: {key}.{ending} is not an image of the index's {index.record}")
        mate = next(members, None)
        if mate is None or mate[:2] != (key, label_ending):
            raise DataError(f"{name}: image {key}.{ending} has no label after it")
        if index.record in ("raw", "latents"):
            yield from _chunk(key, image, mate[2], index, name)
        elif _LABEL.match(mate[2]):
            yield Record(key, image, int(mate[2]))
        else:
            raise DataError(f"{name}: {key}.cls is not a class number")


def decode_record(record: Record, index: Index, *, name: str) -> npt.NDArray[np.uint8]:
    """Decode a record to uint8 [H, W, C] and check it against the index; of latents, bytes of the
    index's `shape` with the first dimension last. Raises DataError."""
    if not 0 <= record.label < len(index.classes):
        raise DataError(
            f"{name}: {record.key} has label {record.label}, "
            f"the index has {len(index.classes)} classes"
        )
    if isinstance(index, TarView) and isinstance(record.image, bytes):
        return decode_file(record.image, index, f"{name}: {record.key}")
    if not isinstance(record.image, bytes):
        if index.latents is not None and not np.isfinite(record.image.view("<f2")).all():
            raise DataError(f"{name}: {record.key} is not finite: encode the set again")
        return record.image.transpose(1, 2, 0)
    return decode_image(
        record.image,
        "webp" if index.record == "webp" else "png",
        resolution=index.resolution,
        channels=index.channels,
        where=f"{name}: {record.key}.{index.record}",
    )


def _chunk(key: str, images: bytes, labels: bytes, index: Index, name: str) -> Iterator[Record]:
    ending, latents = ENDINGS[index.record][0], index.latents is not None
    planes, side, _ = index.shape
    where = f"{name}: {key}.{ending}"
    pixels = parse_npy(images, "<f2" if latents else "|u1", (planes, side, side), where)
    if latents:
        pixels = pixels.view(np.uint8)
    numbers = parse_npy(labels, "<i4", (), f"{name}: {key}.labels.npy").tolist()
    if len(pixels) != len(numbers):
        raise DataError(f"{name}: {key} has {len(pixels)} images and {len(numbers)} labels")
    for place, (image, label) in enumerate(zip(pixels, numbers, strict=True)):
        yield Record(f"{key}+{place}", image, label)


def _members(file: BinaryIO, name: str) -> Iterator[tuple[str, str, bytes]]:
    """Yield (key, ending, content) of each member up to the end mark."""
    while True:
        header = _read(file, BLOCK, name)
        if not header.strip(b"\0"):
            if _read(file, BLOCK, name).strip(b"\0"):
                raise DataError(f"{name}: damaged end mark")
            return
        key, ending, size = _check_header(header, name)
        yield key, ending, _read(file, size + -size % BLOCK, name)[:size]


def _read(file: BinaryIO, size: int, name: str) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise DataError(f"{name} is truncated: copy or convert it again")
    return data


def _check_header(block: bytes, name: str) -> tuple[str, str, int]:
    """Check a member's header block; return key, ending and size in bytes."""
    label, flag, size = parse_header(block, name)
    kind = kind_of(flag)
    if kind is not None:
        raise DataError(
            f"{name}: member {printable(label)!r} is {kind}: only regular files are read"
        )
    match = _NAME.match(label)
    if match is None or block[345:500].strip(b"\0"):
        raise DataError(
            f"{name}: member name {printable(label)!r} is not one of a shard's, such as KEY.png"
        )
    if size is None:
        raise DataError(f"{name}: member {printable(label)!r} has no plain size")
    ending = match[2].decode()
    cap = _CAPS.get(ending, MAX_RECORD_BYTES)
    if size > cap:
        raise DataError(
            f"{name}: member {printable(label)!r} claims {size} bytes, more than the {cap} allowed"
        )
    return match[1].decode(), ending, size
