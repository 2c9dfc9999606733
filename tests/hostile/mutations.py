"""How a sound file becomes another one: bits flipped, integers set to extremes, parts cut, doubled,
moved and taken from another file, words put in; then, mostly, its checksums are repaired, because a
reader that stops at a checksum learns nothing more.

    mutated(sample, random.Random(0))
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

__all__ = ["NOTHING", "PNG", "RIFF", "TAR", "ZIP", "Shape", "mutated"]

EXTREMES = [0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 1 << 24, 0x7FFFFFFF, 0xFFFFFFFF]
EXTREMES += [1 << 40, (1 << 63) - 1, (1 << 64) - 1]
OCTAL = (b"77777777777\0", b"00000000000\0", b"00000000777 ", b"\x80" + b"\xff" * 11)
NAMES = (b"../../x.png", b"/etc/x.png", b"pipe:x", b"x\n.png", b"\x1b[31mx.png", b"\xff\xfe.png")


class Shape(NamedTuple):
    """What a mutation knows of a format: where integers are, which words occur, how checksums are
    repaired."""

    fields: Callable[[bytes], Iterable[int]] = lambda _: ()
    words: tuple[bytes, ...] = NAMES
    repair: Callable[[bytearray], None] = lambda _: None


def mutated(data: bytes, draw: random.Random, shape: Shape, other: bytes = b"") -> bytes:
    """Another file; a function of the arguments and the random numbers."""
    new = bytearray(data)
    for _ in range(draw.randint(1, 4)):
        change = draw.choice((_flip, _integer, _integer, _octal, _cut, _double, _word))
        change(new, draw, shape)
    if other and draw.random() < 0.15:
        start = draw.randrange(len(other))
        place = draw.randint(0, len(new))
        new[place : place + draw.choice((0, 64))] = other[start : start + draw.choice((16, 600))]
    if draw.random() < 0.1:
        del new[draw.randint(0, len(new)) :]
    if draw.random() < 0.8:
        shape.repair(new)
    return bytes(new)


def _place(new: bytearray, draw: random.Random, shape: Shape) -> int:
    fields = list(shape.fields(bytes(new)))
    if fields and draw.random() < 0.7:
        return draw.choice(fields)
    return draw.randint(0, max(0, len(new) - 1))


def _flip(new: bytearray, draw: random.Random, shape: Shape) -> None:
    if new:
        new[_place(new, draw, shape) % len(new)] ^= 1 << draw.randrange(8)


def _integer(new: bytearray, draw: random.Random, shape: Shape) -> None:
    width, order = draw.choice((1, 2, 4, 8)), draw.choice(("little", "big"))
    value = draw.choice(EXTREMES) % (1 << 8 * width)
    start = _place(new, draw, shape)
    new[start : start + width] = value.to_bytes(width, "little" if order == "little" else "big")


def _octal(new: bytearray, draw: random.Random, shape: Shape) -> None:
    if shape is not TAR:
        return _integer(new, draw, shape)
    block = draw.randrange(max(1, len(new) // 512)) * 512
    start, value = draw.choice(
        ((124, draw.choice(OCTAL)), (156, draw.choice((b"S", b"x", b"L", b"2", b"6", b"5"))))
    )
    new[block + start : block + start + len(value)] = value
    return None


def _cut(new: bytearray, draw: random.Random, shape: Shape) -> None:
    start = _place(new, draw, shape)
    del new[start : start + draw.choice((1, 4, 30, 512))]


def _double(new: bytearray, draw: random.Random, shape: Shape) -> None:
    start, size = _place(new, draw, shape), draw.choice((1, 4, 30, 512, 1024))
    place = _place(new, draw, shape)
    new[place:place] = new[start : start + size] * draw.choice((1, 1, 1, 3, 50))


def _word(new: bytearray, draw: random.Random, shape: Shape) -> None:
    start, word = _place(new, draw, shape), draw.choice(shape.words)
    new[start : start + draw.choice((0, len(word)))] = word


def _png_chunks(data: bytes) -> Iterator[tuple[int, int]]:
    at = 8
    while at + 12 <= len(data):
        (size,) = struct.unpack_from(">I", data, at)
        yield at, size
        at += 12 + size


def _png_fields(data: bytes) -> Iterator[int]:
    yield from (16, 20, 24, 25, 26, 27, 28)
    for at, _ in _png_chunks(data):
        yield from (at, at + 4, at + 8, at + 12)


def _repair_png(new: bytearray) -> None:
    for at, size in _png_chunks(bytes(new)):
        if at + 12 + size <= len(new):
            sum_ = zlib.crc32(bytes(new[at + 4 : at + 8 + size]))
            new[at + 8 + size : at + 12 + size] = struct.pack(">I", sum_)


def _riff_fields(data: bytes) -> Iterator[int]:
    yield from (4, 16, 20, 21, 22, 23, 24, 26, 27, 28)
    at = 12
    while at + 8 <= len(data):
        yield from (at, at + 4, at + 8)
        at += 8 + int.from_bytes(data[at + 4 : at + 8], "little") + 1 & ~1


def _tar_fields(data: bytes) -> Iterator[int]:
    for block in range(0, len(data) - 511, 512):
        if data[block + 257 : block + 262] == b"ustar":
            yield from (block, block + 124, block + 156, block + 257, block + 345, block + 512)


def _repair_tar(new: bytearray) -> None:
    for block in range(0, len(new) - 511, 512):
        if new[block + 257 : block + 262] == b"ustar":
            new[block + 148 : block + 156] = b" " * 8
            new[block + 148 : block + 156] = f"{sum(new[block : block + 512]):06o}\0 ".encode()


def _zip_fields(data: bytes) -> Iterator[int]:
    for mark, offsets in (
        (b"PK\x03\x04", (6, 8, 18, 22, 26, 28)),
        (b"PK\x01\x02", (8, 10, 16, 20, 24, 28, 30, 32, 42, 46)),
        (b"PK\x05\x06", (8, 10, 12, 16, 20)),
    ):
        at = data.find(mark)
        while at >= 0:
            yield from (at + offset for offset in offsets)
            at = data.find(mark, at + 4)


NOTHING = Shape()
PNG = Shape(
    _png_fields, (b"tRNS", b"acTL", b"fcTL", b"fdAT", b"iCCP", b"zTXt", b"IHDR"), _repair_png
)
RIFF = Shape(_riff_fields, (b"VP8X", b"VP8L", b"VP8 ", b"ANIM", b"ANMF", b"ALPH", b"EXIF"))
TAR = Shape(_tar_fields, NAMES, _repair_tar)
ZIP = Shape(_zip_fields, NAMES)
