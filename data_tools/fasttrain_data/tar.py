"""Tar files that may be hostile, one 512-byte header at a time.

A general tar reader follows sparse maps (10 KB can ask for 6 GB), extended headers, links and names
with folders. `parse_header` reads a plain name, a type and a size, and checks the checksum; what is
not a regular file is for the caller to refuse or to pass over.

    for member in scan(file, size, "train.tar"):
        member.name, member.kind, member.offset, member.size
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import IO, NamedTuple

from fasttrain_data.errors import DataError

__all__ = ["BLOCK", "Member", "kind_of", "parse_header", "printable", "scan"]

BLOCK = 512
_OCTAL = re.compile(rb" *([0-7]{1,11})[ \0]*\Z")
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


class Member(NamedTuple):
    """A member: its name, None when it is a regular file or else what it is, and its content."""

    name: bytes
    kind: str | None
    offset: int
    size: int


def kind_of(flag: bytes) -> str | None:
    """None for a regular file, else what the type flag says, in words."""
    return None if flag in (b"0", b"\0") else _KINDS.get(flag, f"of type {flag!r}")


def printable(name: bytes) -> str:
    """A member's name for a message, on one line whatever it holds."""
    return name.decode("ascii", "backslashreplace").encode("unicode_escape").decode()


def parse_header(block: bytes, where: str) -> tuple[bytes, bytes, int | None]:
    """Name (without the prefix field), type flag, and size or None when it is no plain number.

    Raises DataError, naming `where`, unless the checksum is right.
    """
    expected = _OCTAL.match(block[148:156])
    if expected is None or int(expected[1], 8) != sum(block) - sum(block[148:156]) + 256:
        raise DataError(f"{where}: damaged header: copy or convert it again")
    size = _OCTAL.match(block[124:136])
    return block[:100].rstrip(b"\0"), block[156:157], int(size[1], 8) if size else None


def scan(file: IO[bytes], end: int, where: str) -> Iterator[Member]:
    """Every member of a tar that lies in a file from its position up to the byte `end`.

    Contents are passed over, not read. An archive may end without its end mark. Raises DataError.
    """
    at = file.tell()
    while at + BLOCK <= end:
        file.seek(at)
        block = file.read(BLOCK)
        if len(block) < BLOCK or not block.strip(b"\0"):
            return
        name, flag, size = parse_header(block, where)
        if size is None or at + BLOCK + size > end:
            raise DataError(f"{where}: member {printable(name)!r} is larger than the file")
        kind = kind_of(flag)
        if (
            kind is None
            and (prefix := block[345:500].rstrip(b"\0"))
            and block[257:263] == b"ustar\0"
        ):
            name = prefix + b"/" + name
        yield Member(name, kind, at + BLOCK, size)
        at += BLOCK + size + -size % BLOCK
