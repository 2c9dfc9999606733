"""How publishers pack data sets, and the table of the ways to convert each.

Images are of one value each, so that a value tells which image it is.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from tests.hostile.files import tar_of


class Layout(NamedTuple):
    """A set, the options of its conversion, and (class, value) of each image."""

    name: str
    make: Callable[[Path], Path]
    expected: list[tuple[str, int]]
    options: Mapping[str, Any]


LAYOUTS: list[Layout] = []


def layout(name: str, expected: Iterable[tuple[str, int]], **options: Any) -> Callable[..., Any]:
    """For a function that makes the set; several may stand above one."""

    def add(make: Callable[[Path], Path]) -> Callable[[Path], Path]:
        LAYOUTS.append(Layout(name, make, sorted(expected), options))
        return make

    return add


def picture(value: int, kind: str = "PNG", side: int = 8) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side, side), (value, value, value)).save(buffer, kind, quality=100)
    return buffer.getvalue()


def as_bytes(data: bytes | str) -> bytes:
    return data.encode() if isinstance(data, str) else data


def write(root: Path, files: Mapping[str, bytes | str]) -> Path:
    for name, data in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(as_bytes(data))
    return root


def pictures(*names: str, kind: str = "PNG") -> dict[str, bytes]:
    """An image of value 10, 20, ... under each name."""
    return {name: picture(10 * n, kind) for n, name in enumerate(names, 1)}


def planes(values: Iterable[int], side: int = 32) -> np.ndarray:
    """uint8 [n, 3 * side * side]."""
    return np.stack([np.full(3 * side * side, value, np.uint8) for value in values])


def tar_gz(path: Path, folder: str, files: Mapping[str, bytes | str]) -> Path:
    members = {f"{folder}/{name}": as_bytes(data) for name, data in files.items()}
    path.write_bytes(gzip.compress(tar_of(members)))
    return path


# As Python 2 wrote them: texts are bytes there, and so they are in the original files.
def old_pickle(table: dict[str, Any]) -> bytes:
    """A dictionary of arrays, numbers and texts with Python 2's opcodes."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text if len(text) < 256 else long(text)

    def long(data: bytes) -> bytes:
        return b"T" + len(data).to_bytes(4, "little") + data

    def dump(value: Any) -> bytes:
        if isinstance(value, str):
            return short(value.encode())
        if isinstance(value, int):
            return b"K" + bytes([value]) if value < 256 else b"M" + value.to_bytes(2, "little")
        if isinstance(value, list):
            return b"](" + b"".join(map(dump, value)) + b"e"
        head = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85U\x01b\x87R(K\x01"
        shape = b"".join(dump(int(side)) for side in value.shape)
        kind = (
            b"cnumpy\ndtype\nU\x02u1K\0K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff"
        )
        return head + shape + b"\x86" + kind + b"K\0tb\x89" + short(value.tobytes()) + b"tb"

    items = b"".join(dump(key) + dump(value) for key, value in table.items())
    return b"\x80\x02}(" + items + b"u."
