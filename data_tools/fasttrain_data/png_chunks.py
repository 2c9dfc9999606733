"""A PNG file without the chunks that say nothing of its pixels.

    needed = needed_chunks(file)          # IHDR, PLTE, tRNS, eXIf, IDAT, IEND; None: not a PNG

A damaged colour profile, or a text of a megabyte, does not make a picture unusable; and what is
not looked at can do no harm.
"""

from __future__ import annotations

import io
import os
import struct
from typing import IO, NamedTuple

__all__ = ["Needed", "needed_chunks"]

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_NEEDED = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"})


class Needed(NamedTuple):
    """What is left of a PNG.

    Attributes:
        file: the PNG of the needed chunks; up to its pixels where only these were asked for.
        depth: bits of a sample.
        exif: the content of its eXIf chunk, if one comes before the pixels.
        several: whether it is an animation.
    """

    file: io.BytesIO
    depth: int
    exif: bytes
    several: bool


def needed_chunks(file: IO[bytes], *, header: bool = False) -> Needed | None:
    """The needed chunks of a PNG, or with `header` those before its pixels; None for another file.

    A chunk that is cut short ends it, for the decoder to find. The file is at its start again.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if file.read(8) != _SIGNATURE:
        file.seek(0)
        return None
    kept, depth, exif = [_SIGNATURE], 8, b""
    pixels = several = False
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        if kind == b"IDAT":
            pixels = True
            if header:
                kept.append(head)
                break
        several = several or (kind == b"acTL" and not pixels)
        if kind not in _NEEDED or (kind == b"eXIf" and (pixels or exif)):
            if length > size - file.tell():
                break
            file.seek(length + 4, os.SEEK_CUR)
            continue
        content = file.read(min(length, size) + 4)
        if kind == b"eXIf":
            exif = content[:length]
            continue
        if kind == b"IHDR" and len(content) > 8:
            depth = content[8]
        kept += [head, content]
        if kind == b"IEND":
            break
    file.seek(0)
    return Needed(io.BytesIO(b"".join(kept)), depth, exif, several)
