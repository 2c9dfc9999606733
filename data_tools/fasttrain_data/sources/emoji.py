"""npm's emoji packages: pictures of 64x64 and a table of what they show."""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from fasttrain_data.errors import DataError
from fasttrain_data.sources.arrays import unpacked
from fasttrain_data.sources.base import (
    EncodedSource,
    Span,
    listing_hash,
    read_span,
)
from fasttrain_data.sources.folder import open_inside
from fasttrain_data.sources.place import Place
from fasttrain_data.tables import load_json, read_json
from fasttrain_data.tar import MAX_MEMBER_BYTES, scan

__all__ = ["EmojiSource"]

MAX_PACKAGE_BYTES = 1 << 30
_EMOJI = rb"package/(?:img/[^/]+/64/([^/]+\.png)|(emoji\.json))"


class EmojiSource(EncodedSource):
    """npm's `emoji-datasource-*`: single PNG files of 64x64, classes by the category that
    `emoji.json` gives. The package's .tgz, or the folder that it was unpacked to."""

    _open: Callable[[str], AbstractContextManager[IO[bytes]]]

    @classmethod
    def opened(cls, place: Place) -> EmojiSource | None:
        packed = place.gzipped and place.path.suffix == ".tgz" and _starts(place.path)
        known = packed or place.has("emoji.json", "package/emoji.json")
        return cls(place.path) if known else None

    def __init__(self, path: Path) -> None:
        self.title = str(path)
        table = self._unpacked(path) if path.is_dir() else self._packed(path)
        rows = sorted(_emoji(table, path))
        present = [(name, label) for name, label in rows if name in self._present]
        self._images = [name for name, _ in present]
        if not present:
            raise DataError(f"none of the images that {path}/emoji.json names is there")
        self.classes = sorted({category for _, category in present})
        number = {name: label for label, name in enumerate(self.classes)}
        self.labels = [number[category] for _, category in present]
        self.identity = {
            "kind": "emoji",
            "name": re.sub(r"[^A-Za-z0-9._-]", "", path.name),
            "files": len(present),
            "listing_sha256": listing_hash((n, self._present[n]) for n in self._images),
        }

    def _unpacked(self, path: Path) -> Any:
        """Finds the images; the table."""
        root = (path if (path / "emoji.json").is_file() else path / "package").resolve()
        (folder, *_) = [*sorted(root.glob("img/*/64")), root / "img"]
        self._present = {p.name: p.lstat().st_size for p in folder.glob("*.png")}
        self._open = lambda name: open_inside(root, folder / name)
        return load_json(root / "emoji.json")

    def _packed(self, path: Path) -> Any:
        """Finds the images; the table."""
        file, size = unpacked(path, MAX_PACKAGE_BYTES)
        spans: dict[str, Span] = {}
        for member in scan(file, size, str(path)):
            match = re.fullmatch(_EMOJI, member.name)
            if match and member.kind is None and member.size <= MAX_MEMBER_BYTES:
                name = (match[1] or match[2]).decode("ascii", "replace")
                spans[name] = Span(member.offset, member.size)
        self._present = {name: span.size for name, span in spans.items()}
        if "emoji.json" not in spans:
            raise DataError(f"{path} is not an emoji package: no package/emoji.json in it")
        self._open = lambda name: nullcontext(read_span(file.fileno(), spans[name]))
        with self._open("emoji.json") as table:
            return read_json(table.read(), f"{path}/emoji.json")

    def member(self, item: int) -> str:
        return self._images[item]

    @contextmanager
    def open(self, item: int) -> Iterator[IO[bytes]]:
        with self._open(self._images[item]) as file:
            yield file


def _emoji(table: Any, path: Path) -> set[tuple[str, str]]:
    """(image, category) of each emoji and each of its skin variations."""
    found: set[tuple[str, str]] = set()
    try:
        for row in table:
            variations = row.get("skin_variations") or {}
            for each in (row, *variations.values()):
                if not isinstance(each["image"], str) or not isinstance(row["category"], str):
                    raise TypeError
                found.add((each["image"], row["category"]))
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}/emoji.json is not the table of an emoji package") from error
    return found


def _starts(path: Path) -> bool:
    """Whether a gzipped tar begins as npm's packages do."""
    try:
        with gzip.open(path) as file:
            return file.read(8) == b"package/"
    except (OSError, EOFError, zlib.error):
        return False
