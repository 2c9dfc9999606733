"""The first picture of a GIF file, without what says nothing of its pixels.

    needed = needed_blocks(file)          # header, palettes, one image; None: not a GIF

Comments and later pictures are skipped unread: a decoder that gathers a comment of many megabytes
piece by piece takes hours.
"""

from __future__ import annotations

import io
from typing import IO, NamedTuple

__all__ = ["FirstPicture", "needed_blocks"]

_EXTENSION, _IMAGE, _END = 0x21, 0x2C, 0x3B
_CONTROL = 0xF9


class FirstPicture(NamedTuple):
    """A file of one picture.

    Attributes:
        file: the file of the first picture.
        several: whether the original has more.
    """

    file: io.BytesIO
    several: bool


def needed_blocks(file: IO[bytes]) -> FirstPicture | None:
    """The blocks of a GIF's first picture; None for another file.

    What is cut short is kept as it is, for the decoder to find. The file is at its start again.
    """
    signature = file.read(6)
    file.seek(0)
    if signature not in (b"GIF87a", b"GIF89a"):
        return None
    data = file.read()
    file.seek(0)
    at = 13 + _table(data, 10)
    kept, control, several = [data[:at]], b"", False
    while at < len(data):
        begin, kind = at, data[at]
        if kind == _EXTENSION:
            at = _end(data, at + 2)
            if data[begin + 1 : begin + 2] == bytes((_CONTROL,)):
                control = data[begin:at]
        elif kind == _IMAGE:
            if len(kept) > 1:
                several = True
                break
            at = _end(data, at + 11 + _table(data, at + 9))
            kept += [control, data[begin:at]]
        else:
            break
    return FirstPicture(io.BytesIO(b"".join((*kept, bytes((_END,))))), several)


def _table(data: bytes, flags: int) -> int:
    """Bytes of the palette that the flags at a place announce."""
    found = data[flags] if flags < len(data) else 0
    return 3 << (found & 7) + 1 if found & 0x80 else 0


def _end(data: bytes, at: int) -> int:
    """Where blocks that begin with their length end: after an empty one."""
    while at < len(data) and data[at]:
        at += data[at] + 1
    return at + 1
