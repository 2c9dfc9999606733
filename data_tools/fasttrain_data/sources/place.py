"""What a user named as a source, looked at once for all kinds."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

__all__ = ["Place"]

GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Place:
    """A place where images may be.

    Attributes:
        name: as the user wrote it.
        split: `train` unless asked otherwise.
        folder: whether it is one.
        head: a file's first 512 bytes; none for a folder, or where nothing is.
    """

    name: str
    split: str
    folder: bool
    head: bytes

    @classmethod
    def of(cls, name: str, split: str) -> Place:
        """Raises OSError for a file that cannot be read."""
        path = Path(name)
        head = b""
        if path.is_file():
            with path.open("rb") as file:
                head = file.read(512)
        return cls(name, split, path.is_dir(), head)

    @property
    def path(self) -> Path:
        return Path(self.name)

    @property
    def gzipped(self) -> bool:
        """Whether it is a gzip file."""
        return self.head[:2] == GZIP

    def holds(self, *patterns: str) -> bool:
        """Whether it is a folder with something that one of the patterns matches."""
        return self.folder and any(any(self.path.glob(pattern)) for pattern in patterns)

    def has(self, *names: str) -> bool:
        """Whether it is a folder with a file of one of these names."""
        return self.folder and any((self.path / name).is_file() for name in names)
