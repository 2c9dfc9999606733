"""Which tars a user names: a folder, a tar, a brace expansion, a URL of these, several with `::`
between.

    tars = Tars.of("sets/cats-{000000..000146}.tar")
    tars.places[0], tars.names[0]

`name` is a place without the folder that all have in common: what an index calls it, so that a set
can be moved.
"""

from __future__ import annotations

import hashlib
import math
import os
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fasttrain_data.errors import DataError
from fasttrain_data.fetching import is_url
from fasttrain_data.index import INDEX_NAME

__all__ = ["INDEX_FOLDER", "Tars", "cached_index", "holds_tars", "index_folders", "parts_of"]
__all__ += ["quoted"]

INDEX_FOLDER = "fasttrain-index"
"""Beside the tars of a folder."""
MAX_TARS = 1_000_000
_RANGE = re.compile(r"\{(-?[0-9]{1,18})\.\.(-?[0-9]{1,18})\}")
_CHAIN = re.compile(r"[A-Za-z0-9+.]+(::[A-Za-z0-9+.]+)*://")

Listing = Callable[[str], Sequence[str]]
"""The names in the folder behind a URL."""


@dataclass(frozen=True)
class Tars:
    """The tars of a set, in order.

    Attributes:
        spec: as the user names them.
        places: path or URL of each.
        names: each without the folder that all have in common.
    """

    spec: str
    places: tuple[str, ...]
    names: tuple[str, ...]

    @classmethod
    def of(cls, spec: str, listing: Listing | None = None) -> Tars:
        """Expand what a user names; `listing` looks into the folders behind URLs.

        Raises DataError when there are none, or one is named twice.
        """
        places = [place for part in parts_of(spec) for place in _expanded(part, listing)]
        if not places:
            raise DataError(f"no tars at {spec}: name a folder of them, or such as {spec}/*.tar")
        if len(set(places)) < len(places):
            twice = next(place for n, place in enumerate(places) if place in places[:n])
            raise DataError(f"{twice} is named twice")
        return cls(spec, tuple(places), tuple(_names(places)))


def parts_of(spec: str) -> list[str]:
    """What `::` stands between, but in the chains of file systems that fsspec knows."""
    return [spec] if _CHAIN.match(spec) and "::" in spec.split("://")[0] else spec.split("::")


def holds_tars(spec: str) -> bool:
    """Whether a path or URL names tars by their names, and not a shard set with its own index."""
    parts = parts_of(spec)
    if len(parts) > 1 or "{" in spec or spec.endswith(".tar"):
        return True
    if is_url(spec) or (Path(spec) / INDEX_NAME).exists():
        return False
    return any(True for _ in _tars_of(Path(spec)))


def index_folders(spec: str) -> list[Path]:
    """Where an index of tars may lie: beside those of a folder, and in the user's cache."""
    parts = parts_of(spec)
    beside = [Path(spec) / INDEX_FOLDER] if len(parts) == 1 and os.path.isdir(spec) else []
    return [*beside, cached_index(spec)]


def cached_index(spec: str) -> Path:
    """The folder in the user's cache for the index of what a user names."""
    places = [part if is_url(part) else os.path.abspath(part) for part in parts_of(spec)]
    name = hashlib.sha256("\n".join(places).encode()).hexdigest()[:24]
    return Path.home() / ".cache/fasttrain/indexes" / name


def quoted(spec: str) -> str:
    """A specification as a shell takes it."""
    return " ".join(map(shlex.quote, parts_of(spec)))


def _expanded(part: str, listing: Listing | None) -> Iterator[str]:
    from braceexpand import braceexpand

    ranges = (abs(int(last) - int(first)) + 1 for first, last in _RANGE.findall(part))
    if math.prod(ranges) > MAX_TARS:  # expanding them takes a minute
        raise DataError(f"{part} are more than {MAX_TARS} tars")
    try:
        found = list(islice(braceexpand(part), MAX_TARS + 1))
    except ValueError as error:
        raise DataError(f"{part}: its braces are not balanced") from error
    if len(found) > MAX_TARS:
        raise DataError(f"{part} are more than {MAX_TARS} tars")
    for place in found:
        if place.endswith(".tar"):
            yield place if is_url(place) else os.path.abspath(place)
        elif is_url(place):
            if listing is None:
                raise DataError(f"{place} is no tar: name them, such as {place}/set-{{00..99}}.tar")
            names = [name for name in listing(place) if name.endswith(".tar")]
            yield from (f"{place.rstrip('/')}/{name}" for name in sorted(names))
        elif os.path.isdir(place):
            yield from (str(file) for file in sorted(_tars_of(Path(os.path.abspath(place)))))
        else:
            raise DataError(f"no tars at {place}: it is neither a folder nor a .tar")


def _tars_of(folder: Path) -> Iterator[Path]:
    for file in folder.glob("*.tar"):
        if not file.name.startswith(".") and file.is_file():  # a FIFO would be waited for
            yield file


def _names(places: Sequence[str]) -> list[str]:
    first, last = min(places), max(places)
    shared = os.path.commonprefix([first, last])  # noqa: RUF071  # of texts, cut at a slash
    shared = shared[: shared.rfind("/") + 1]
    return [place.removeprefix(shared) for place in places]
