"""Pictures, archives and tables, byte by byte: a header may claim what its data do not hold.

png(4, 4), png(60000, 60000, data=b"")
tar(member("a/x.png", data), member("b.png", kind=b"S", size=6 << 30))
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from fasttrain_data.records import npy_header

__all__ = [
    "chunk",
    "cifar",
    "idx",
    "image",
    "index_of",
    "member",
    "npy",
    "png",
    "riff",
    "riff_chunk",
]
__all__ += ["shard_set", "tar", "zeros", "zip_of"]

BLOCK, MIB = 512, 1 << 20
SIGNATURE = b"\x89PNG\r\n\x1a\n"


def zeros(size: int, *, gzipped: bool = False, head: bytes = b"") -> bytes:
    """So many zeros, compressed, with some bytes before them, as zlib or gzip writes them. After a
    full flush the same MiB of zeros is the same bytes: they are made once."""
    count, rest = divmod(size, MIB)
    parts = [_deflated(head), *[_deflated(bytes(MIB))] * count, _deflated(bytes(rest), last=True)]
    if gzipped:
        sum_ = zlib.crc32(head)
        for _ in range(count):
            sum_ = zlib.crc32(bytes(MIB), sum_)
        end = struct.pack("<II", zlib.crc32(bytes(rest), sum_), len(head) + size & 0xFFFFFFFF)
        return b"\x1f\x8b\x08\0\0\0\0\0\2\xff" + b"".join(parts) + end
    sum_ = zlib.adler32(head)
    high, low = sum_ >> 16, sum_ & 0xFFFF
    sum_ = (high + low * size) % 65521 << 16 | low
    return b"\x78\xda" + b"".join(parts) + struct.pack(">I", sum_)


@cache
def _deflated(data: bytes, *, last: bool = False) -> bytes:
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    return press.compress(data) + press.flush(zlib.Z_FINISH if last else zlib.Z_FULL_FLUSH)


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(
    width: int,
    height: int,
    *,
    depth: int = 8,
    color: int = 2,
    data: bytes | None = None,
    before: bytes = b"",
    after: bytes = b"",
) -> bytes:
    """A PNG picture of zeros, or with other compressed `data`; chunks before and after them."""
    if data is None:
        samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
        data = zeros(height * (1 + -(-width * samples * depth // 8)))
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    chunks = (chunk(b"IHDR", header), before, chunk(b"IDAT", data), after, chunk(b"IEND", b""))
    return SIGNATURE + b"".join(chunks)


def image(
    kind: str = "PNG", size: tuple[int, int] = (6, 6), mode: str = "RGB", **more: Any
) -> bytes:
    """A sound picture, written by Pillow, of colours that differ."""
    width, height = size
    ramp = np.arange(width * height * 3, dtype=np.uint32).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(ramp.reshape(height, width, 3)).convert(mode).save(buffer, kind, **more)
    return buffer.getvalue()


def riff_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a WebP file."""
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def riff(*chunks: bytes) -> bytes:
    """A WebP file."""
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def member(
    name: str | bytes,
    data: bytes = b"",
    *,
    kind: bytes = b"0",
    size: int | bytes | None = None,
    prefix: bytes = b"",
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    patches: Mapping[int, bytes] | None = None,
) -> bytes:
    """A member of a tar, its checksum right; `size` may be another than that of the data."""
    block = bytearray(BLOCK)
    length = len(data) if size is None else size
    field = length if isinstance(length, bytes) else f"{length:011o}\0".encode()
    fields = {
        0: name.encode() if isinstance(name, str) else name,
        100: b"0000644\0",
        124: field,
        136: b"00000000000\0",
        156: kind,
        157: link,
        257: magic,
        345: prefix,
        **(patches or {}),
    }
    for start, value in fields.items():
        block[start : start + len(value)] = value
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block) + data + bytes(-len(data) % BLOCK)


def tar(*members: bytes) -> bytes:
    """A tar with its end mark."""
    return b"".join(members) + bytes(2 * BLOCK)


def tar_of(members: Mapping[str, bytes]) -> bytes:
    """A sound tar."""
    return tar(*(member(name, data) for name, data in members.items()))


def zip_of(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytearray:
    """A sound zip, to be damaged."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return bytearray(buffer.getvalue())


def idx(shape: Sequence[int], data: bytes | None = None) -> bytes:
    """An IDX file of bytes, of zeros if not of other data."""
    head = bytes([0, 0, 8, len(shape)]) + b"".join(struct.pack(">I", side) for side in shape)
    return head + (bytes(int(np.prod(shape))) if data is None else data)


def cifar(count: int = 2, protocol: int = 2) -> bytes:
    """A batch as CIFAR-10's python version has it."""
    rows = np.arange(count * 3072, dtype=np.uint32).astype(np.uint8).reshape(count, 3072)
    batch = {b"data": rows, b"labels": [n % 2 for n in range(count)], b"filenames": [b"x"] * count}
    return pickle.dumps(batch, protocol)


def npy(descr: Any, array: npt.NDArray[Any]) -> bytes:
    """A NumPy file as shards hold it."""
    return npy_header(descr, array.shape) + array.tobytes()


def index_of(shards: Mapping[str, bytes], images: int, **changes: Any) -> dict[str, Any]:
    """The index of a set whose shards have `images` images each, 6x6 colour PNG of one class."""
    infos = [
        {
            "name": name,
            "images": images,
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        for name, data in shards.items()
    ]
    total = images * len(infos)
    return {
        "format_version": 2,
        "resolution": 6,
        "channels": 3,
        "record": "png",
        "classes": [{"name": "a", "images": total}],
        "images": total,
        "shards": infos,
        "content_sha256": "0" * 64,
        "source": {},
        "options": {},
        **changes,
    }


def shard_set(folder: Path, *members: bytes, images: int = 1, **changes: Any) -> Path:
    """A set of one shard that its index vouches for."""
    folder.mkdir()
    shard = tar(*members)
    (folder / "shard-000000.tar").write_bytes(shard)
    index = index_of({"shard-000000.tar": shard}, images, **changes)
    (folder / "index.json").write_text(json.dumps(index))
    return folder
