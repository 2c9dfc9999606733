"""A folder of images: a subfolder a class (any depth below it), a flat folder as one class, or with
the labels of a `dataset.json` as EDM's and StyleGAN's tools write it."""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from fasttrain_data.errors import DataError, shown
from fasttrain_data.images import BadImage, open_regular
from fasttrain_data.sources.base import (
    EncodedSource,
    by_ending,
    by_folder,
    is_image,
    listing_hash,
    times,
)
from fasttrain_data.sources.place import DATASET_JSON, Place
from fasttrain_data.tables import load_json

__all__ = ["FolderSource", "dataset_labels", "open_inside"]


class FolderSource(EncodedSource):
    """Files are taken in sorted order; names that start with a dot and files that are no PNG, JPEG,
    WebP or BMP by name are passed over. A symbolic link is read when it leads to a file inside the
    folder; one that leads out of it, or to a folder, is a bad file.
    """

    @classmethod
    def opened(cls, place: Place) -> FolderSource | None:
        return cls(place.path) if place.folder else None

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.title = str(self.root)
        try:
            found, self.passed_over = _walk(self.root)
        except RecursionError as error:
            raise DataError(f"the folders in {self.root} are nested too deep") from error
        if (self.root / DATASET_JSON).is_file():
            table = load_json(self.root / DATASET_JSON)
            self._files, self.classes, self.labels = dataset_labels(table, found, self.title)
        else:
            self._files = found
            self.classes, self.labels = by_folder(found, self.root)
        self.identity = {
            "kind": "folder",
            "name": shown(self.root.name),
            "files": len(self._files),
            "listing_sha256": listing_hash((file, self._size(file)) for file in self._files),
        }

    def _size(self, file: str) -> int:
        try:
            return (self.root / file).lstat().st_size
        except OSError:
            return -1

    def state(self) -> str:
        return times(self.root / file for file in self._files)

    def member(self, item: int) -> str:
        return self._files[item]

    @contextmanager
    def open(self, item: int) -> Iterator[IO[bytes]]:
        with open_inside(self.root, self.root / self._files[item]) as file:
            yield file


@contextmanager
def open_inside(root: Path, path: Path) -> Iterator[IO[bytes]]:
    """Open a regular file below a resolved folder; a link must lead to one too. Raises BadImage."""
    try:
        mode = path.lstat().st_mode
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise BadImage("cannot be read (broken link or vanished)") from error
    if not real.is_relative_to(root):
        raise BadImage("symbolic link out of the folder")
    if real.is_dir():
        raise BadImage("symbolic link to a folder" if stat.S_ISLNK(mode) else "is a folder")
    with open_regular(real) as file:
        yield file


def dataset_labels(
    table: Any, found: Sequence[str], title: str
) -> tuple[list[str], list[str], list[int]]:
    """Files, class names and labels by EDM's table, `{"labels": [[file, number], ...]}`; one class
    with `"labels": null`. Files that it does not name are passed over. Raises DataError."""
    rows = table.get("labels") if isinstance(table, dict) else ...
    if rows is None:
        return list(found), ["images"], [0] * len(found)
    wrong = DataError(
        f'{title}/{DATASET_JSON} is not {{"labels": [[file, class number], ...]}}: correct or '
        "remove it"
    )
    if not isinstance(rows, list):
        raise wrong
    numbers: dict[str, int] = {}
    for row in rows:
        if not (isinstance(row, list) and len(row) == 2 and isinstance(row[0], str)):
            raise wrong
        if type(row[1]) is not int or not 0 <= row[1] < 1_000_000:
            raise wrong
        numbers[row[0]] = row[1]
    files = [name for name in found if name in numbers]
    missing = sorted(set(numbers) - set(files))
    if missing:
        raise DataError(f"{title}/{DATASET_JSON} names {shown(missing[0])}, which is not there")
    if not files:
        raise DataError(f"no images in {title} that its {DATASET_JSON} names")
    classes = [str(label) for label in range(max(numbers.values()) + 1)]
    return files, classes, [numbers[name] for name in files]


def _walk(root: Path) -> tuple[list[str], Counter[str]]:
    """Image files below the root, relative to it, sorted, and other files by their ending; links to
    folders are listed, not entered.

    A class folder may not be a link itself.
    """
    files: list[str] = []
    others = Counter[str]()
    for folder, subfolders, names in os.walk(root, onerror=_stop):
        here = Path(folder)
        subfolders[:] = sorted(sub for sub in subfolders if not sub.startswith("."))
        links = [sub for sub in subfolders if (here / sub).is_symlink()]
        if here == root:
            whole = [link for link in links if not is_image(link)]
            if whole:
                raise DataError(
                    f"{root / whole[0]} is a symbolic link to a folder: copy it, or name its target"
                )
        wanted = [name for name in names if is_image(name)]
        files += [str((here / name).relative_to(root)) for name in wanted + links]
        others += by_ending(names)
    return sorted(files), others


def _stop(error: OSError) -> None:
    """A folder that cannot be listed would be missing from the set without a word."""
    raise error
