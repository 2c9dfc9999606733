"""A file that is read once, forwards, and hashed as it goes by.

file = OnePass(pieces)
members = scan(file, size, "set.tar")        # which reads headers and skips contents
file.drain(), file.hexdigest()
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from fasttrain_data.errors import DataError
from fasttrain_data.fetching import Server, is_url

__all__ = ["OnePass", "pieces_of"]

PIECE = 1 << 20


class OnePass:
    """What `tar.scan` needs of a file, over pieces of bytes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self._digest = pieces, hashlib.sha256()
        self._piece, self._first, self._at = b"", 0, 0  # where the piece begins, and where we are

    def tell(self) -> int:
        return self._at

    def seek(self, at: int) -> None:
        """Go forwards; to the end when the file is shorter."""
        assert at >= self._at
        while at > self._first + len(self._piece) and self._next():
            pass
        self._at = min(at, self._first + len(self._piece))

    def read(self, size: int) -> bytes:
        """So many bytes, or what is left."""
        begin = self._at - self._first
        found = self._piece[begin : begin + size]
        if len(found) < size:
            parts, have = [found], len(found)
            while have < size and self._next():
                parts.append(self._piece[: size - have])
                have += len(parts[-1])
            found = b"".join(parts)
        self._at += len(found)
        return found

    def drain(self) -> int:
        """Read what is left; the file's size."""
        while self._next():
            pass
        self._at = self._first + len(self._piece)
        return self._at

    def hexdigest(self) -> str:
        """SHA-256 of what went by."""
        return self._digest.hexdigest()

    def _next(self) -> bool:
        piece = next(self._pieces, b"")
        if not piece:
            return False
        self._digest.update(piece)
        self._first += len(self._piece)
        self._piece = piece
        return True


@contextmanager
def pieces_of(place: str, size: int, server: Callable[[str], Server]) -> Iterator[Iterator[bytes]]:
    """The bytes of a file here or behind a URL. Raises DataError, Unreachable."""
    if is_url(place):
        yield server(place.rpartition("/")[0]).receive(place, size + 1)
        return
    try:
        file = open(place, "rb", buffering=0)  # noqa: SIM115  # closed below
    except OSError as error:
        raise DataError(f"cannot read {place}: {error.strerror}") from error
    with file:
        yield iter(lambda: file.read(PIECE), b"")
