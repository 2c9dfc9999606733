"""Tar files that may be hostile, one 512-byte header at a time.

A general tar reader follows sparse maps (10 KB can ask for 6 GB), extended headers, links and names
with folders. `parse_header` reads a plain name, a type and a size, and checks the checksum; what is
not a regular file is for the caller to refuse or to pass over.

    for member in scan(file, size, "train.tar"):
        member.name, member.kind, member.offset, member.size
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator
from typing import IO, NamedTuple

from fasttrain_data.errors import DataError

__all__ = ["BLOCK", "MAX_MEMBER_BYTES", "Member", "kind_of", "parse_header", "printable", "scan"]

BLOCK = 512
MAX_MEMBER_BYTES = 64 << 20
"""Of an image that is read."""
_OCTAL = re.compile(rb" *([0-7]{1,11})[ \0]*\Z")
_RECORD = re.compile(rb"([0-9]{1,5}) ")
_MAX_AHEAD = 1 << 16
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
    """A member's name on one line, whatever it holds."""
    text = name.decode("utf-8", "backslashreplace")
    return text if text.isprintable() else text.encode("unicode_escape").decode()


def parse_header(block: bytes, where: str) -> tuple[bytes, bytes, int | None]:
    """Name (without the prefix field), type flag, and size or None when it is no plain number.

    Raises DataError, naming `where`, unless the checksum is right.
    """
    expected = _OCTAL.match(block[148:156])
    if expected is None or int(expected[1], 8) != _sum(block) - sum(block[148:156]) + 256:
        raise DataError(f"{where}: damaged header: copy or convert it again")
    size = _OCTAL.match(block[124:136])
    return block[:100].rstrip(b"\0"), block[156:157], int(size[1], 8) if size else None


def _sum(block: bytes) -> int:
    """The sum of a block's bytes. Adler-32 holds it as 1 + sum modulo 65,521, which 256 bytes do
    not reach, and is ten times as fast as `sum`."""
    halves = (zlib.adler32(block[:256]) & 0xFFFF) + (zlib.adler32(block[256:]) & 0xFFFF)
    return halves - 2


def scan(file: IO[bytes], end: int, where: str) -> Iterator[Member]:
    """Every member of a tar that lies in a file from its position up to the byte `end`.

    Contents are passed over, not read, but for the long names that GNU tar ("L") and POSIX ("x")
    write before a member. An archive may end without its end mark. Raises DataError.
    """
    at = file.tell()
    ahead: dict[bytes, bytes] = {}
    while at + BLOCK <= end:
        file.seek(at)
        block = file.read(BLOCK)
        if len(block) < BLOCK or not block.strip(b"\0"):
            return
        name, flag, size = parse_header(block, where)
        size = _number(ahead[b"size"]) if b"size" in ahead and flag not in b"xL" else size
        if size is None or at + BLOCK + size > end:
            raise DataError(f"{where}: member {printable(name)!r} is larger than the file")
        kind = kind_of(flag)
        if flag in (b"x", b"L"):
            if size > _MAX_AHEAD:
                raise DataError(f"{where}: {kind} of {size} bytes, more than {_MAX_AHEAD}")
            content = file.read(size)
            ahead |= _records(content) if flag == b"x" else {b"path": content.rstrip(b"\0")}
            at += BLOCK + size + -size % BLOCK
            continue
        if (
            kind is None
            and (prefix := block[345:500].rstrip(b"\0"))
            and block[257:263] == b"ustar\0"
        ):
            name = prefix + b"/" + name
        if any(key.startswith(b"GNU.sparse.") for key in ahead):
            kind = kind_of(b"S")
        yield Member(ahead.get(b"path", name), kind, at + BLOCK, size)
        ahead = {}
        at += BLOCK + size + -size % BLOCK


def _records(content: bytes) -> dict[bytes, bytes]:
    """The `LENGTH KEY=VALUE` lines of an extended header, up to the first that is not one."""
    found, at = {}, 0
    while (match := _RECORD.match(content, at)) and len(content) - at >= int(match[1]) > 4:
        end = at + int(match[1])
        key, _, value = content[match.end() : end - 1].partition(b"=")
        found[key] = value
        at = end
    return found


def _number(text: bytes) -> int | None:
    return int(text) if re.fullmatch(rb"[0-9]{1,15}", text) else None
