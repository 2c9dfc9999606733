"""The first page of a TIFF file, with those of its tags alone that its pixels need.

    needed = needed_tags(file)            # the file with a directory of its own; None: not a TIFF

Thumbnails, layers, profiles and later pages are not looked at. A decoder reads every tag of a
directory: 65,535 tags may each name the same hundred megabytes.
"""

from __future__ import annotations

import io
import shutil
import struct
from typing import IO, NamedTuple

__all__ = ["MAX_TAG_BYTES", "FirstPage", "UnusableTiff", "needed_tags"]

MAX_TAG_BYTES = 1 << 20
"""All tags of a page that its pixels need; 130,000 strips take as much."""
MAX_TAGS = 4096
_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _TILE_WIDTH, _TILE_HEIGHT = 274, 277, 322, 323
_NEEDED = frozenset(
    {
        *(_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES),
        *(266, 273, 278, 279, 284),  # order of bits, strips, planes
        *(292, 293, 317, 320, 322, 323, 324, 325),  # options of faxes, predictor, palette, tiles
        *(332, 334, 338, 339, 347),  # inks, alpha, numbers' format, JPEG's tables
        *(529, 530, 531, 532),  # YCbCr
    }
)
_SINGLE = frozenset({_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, 266, 278, 284})
_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 16: 8, 17: 8}
_LETTERS = {1: "B", 3: "H", 4: "I", 16: "Q"}
_COMPRESSIONS = frozenset({1, 2, 3, 4, 5, 7, 8, 32773, 32946})
"""None, the faxes' three, LZW, JPEG, deflate, PackBits, deflate's old number: what cameras,
scanners and editors write. Others stay unread, among them LZMA, whose decoder takes what memory it
likes."""


class UnusableTiff(Exception):
    """A page that is not read; `str(error)` is why."""


class FirstPage(NamedTuple):
    """A file of one page.

    Attributes:
        file: the file; of its header alone where that was asked for.
        orientation: as EXIF's, 1 to 8.
        tile: pixels of a tile, 0 for strips.
        several: whether the original has more pages.
    """

    file: io.BytesIO
    orientation: int
    tile: int
    several: bool


class _Kind(NamedTuple):
    """How one of the two kinds of TIFF is written: formats of counts, entries and offsets."""

    order: str
    start: int
    number: struct.Struct
    entry: struct.Struct
    offset: struct.Struct


def needed_tags(file: IO[bytes], *, header: bool = False) -> FirstPage | None:
    """The first page of a TIFF or BigTIFF, or with `header` its tags; None for another file.

    Raises UnusableTiff for a page of a kind that is not read, and struct.error for a directory that
    is cut short. The file is at its start again.
    """
    head = file.read(16)
    file.seek(0)
    kind = _kind(head)
    if kind is None:
        return None
    try:
        tags, several = _tags(file, kind, _value(head[kind.start - kind.offset.size :], kind))
    finally:
        file.seek(0)
    _check(tags, kind)
    turn = _first(tags, _ORIENTATION, kind, 1)
    tile = _first(tags, _TILE_WIDTH, kind, 0) * _first(tags, _TILE_HEIGHT, kind, 0)
    return FirstPage(
        _page(file, head, kind, tags, header), turn if 1 <= turn <= 8 else 1, tile, several
    )


def _kind(head: bytes) -> _Kind | None:
    order = {b"II": "<", b"MM": ">"}.get(head[:2])
    if order is None or len(head) < 16:
        return None
    version = struct.unpack(order + "H", head[2:4])[0]
    sizes = {42: (8, "H", "HHI4s", "I"), 43: (16, "Q", "HHQ8s", "Q")}.get(version)
    if sizes is None:
        return None
    start, *formats = sizes
    return _Kind(order, start, *(struct.Struct(order + text) for text in formats))


def _value(data: bytes, kind: _Kind) -> int:
    return int(kind.offset.unpack(data[: kind.offset.size])[0])


def _tags(file: IO[bytes], kind: _Kind, at: int) -> tuple[dict[int, tuple[int, int, bytes]], bool]:
    """Type, count and content of the needed tags, and whether another page follows."""
    file.seek(at)
    (count,) = kind.number.unpack(file.read(kind.number.size))
    if count > MAX_TAGS:
        raise UnusableTiff(f"more than {MAX_TAGS:,} tags")
    rows = file.read(count * kind.entry.size)
    follows = file.read(kind.offset.size)
    tags: dict[int, tuple[int, int, bytes]] = {}
    total = 0
    for tag, form, number, inline in kind.entry.iter_unpack(rows):
        size = _BYTES.get(form, 0) * number
        if tag not in (*_NEEDED, _ORIENTATION) or not size:
            continue
        if tag in _SINGLE and number > 1:
            raise UnusableTiff("damaged image")
        total += size
        if total > MAX_TAG_BYTES:
            raise UnusableTiff(f"more than {MAX_TAG_BYTES >> 20} MiB of tags")
        content = inline[:size]
        if size > len(inline):
            file.seek(_value(inline, kind))
            content = file.read(size)
            if len(content) < size:
                raise UnusableTiff("damaged image")
        tags[tag] = (form, number, content)
    return tags, len(follows) == kind.offset.size and _value(follows, kind) != 0


def _first(tags: dict[int, tuple[int, int, bytes]], tag: int, kind: _Kind, default: int) -> int:
    """The first number of a tag."""
    form, _, content = tags.get(tag, (0, 0, b""))
    if form not in _LETTERS:
        return default
    return int(struct.unpack_from(kind.order + _LETTERS[form], content)[0])


def _check(tags: dict[int, tuple[int, int, bytes]], kind: _Kind) -> None:
    """Refuse what a decoder would not decode, or decode wrongly without a word."""
    compression = _first(tags, _COMPRESSION, kind, 1)
    bits, photometric = _first(tags, _BITS, kind, 1), _first(tags, _PHOTOMETRIC, kind, 0)
    samples = _first(tags, _SAMPLES, kind, 1)
    what = ""
    if compression not in _COMPRESSIONS:
        what = f"compression {compression}"
    elif samples > 6:
        what = f"{samples} samples a pixel"
    elif bits not in (1, 2, 4, 8, 16):
        what = f"{bits} bits a sample"
    elif bits == 16 and photometric == 0:
        what = "16 bits and white as 0"
    elif photometric == 6 and compression == 1:
        what = "YCbCr without compression"
    if what:
        raise UnusableTiff(f"TIFF with {what}, not read: convert it to PNG or JPEG")


def _page(
    file: IO[bytes],
    head: bytes,
    kind: _Kind,
    tags: dict[int, tuple[int, int, bytes]],
    header: bool,
) -> io.BytesIO:
    """The file with a directory of the needed tags at its end."""
    page = io.BytesIO()
    page.write(head[: kind.start])
    if not header:
        file.seek(kind.start)
        shutil.copyfileobj(file, page, 1 << 20)
        file.seek(0)
    page.write(bytes(-page.tell() % 8))
    at = page.tell()
    rows = sorted((tag, row) for tag, row in tags.items() if tag in _NEEDED)
    free = at + kind.number.size + len(rows) * kind.entry.size + kind.offset.size
    page.write(kind.number.pack(len(rows)))
    contents = []
    for tag, (form, number, content) in rows:
        if len(content) > kind.offset.size:
            contents.append(content)
            page.write(kind.entry.pack(tag, form, number, kind.offset.pack(free)))
            free += len(content)
        else:
            page.write(kind.entry.pack(tag, form, number, content))
    page.write(kind.offset.pack(0) + b"".join(contents))
    page.seek(kind.start - kind.offset.size)
    page.write(kind.offset.pack(at))
    page.seek(0)
    return page
