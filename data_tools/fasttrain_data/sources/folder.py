"""A folder of images: a subfolder a class (any depth below it), a flat folder as one class, or with
the labels of a file that lies in it (`label_files.py`)."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from fasttrain_data.endings import DATA
from fasttrain_data.errors import DataError, shown
from fasttrain_data.foreign import what_folder
from fasttrain_data.images import BadImage, open_regular
from fasttrain_data.samples import is_hidden
from fasttrain_data.sources.base import EncodedSource, listing_hash, times
from fasttrain_data.sources.classes import Listing, classify
from fasttrain_data.sources.names import by_ending, cleaned, is_image
from fasttrain_data.sources.place import Place
from fasttrain_data.sources.selection import Selection
from fasttrain_data.tables import MAX_JSON_BYTES

__all__ = ["FolderSource", "open_inside"]


class FolderSource(EncodedSource):
    """Files are taken in sorted order; hidden files and folders, and files that are no images by
    name, are passed over. A symbolic link is read when it leads to a file inside the folder; one
    that leads out of it, or to a folder, is a bad file. With `follow_links` all are followed, but
    for a folder that is inside of itself.
    """

    options = frozenset({"split", "label_column", "labels", "follow_links"})

    @classmethod
    def opened(cls, place: Place) -> FolderSource | None:
        if not place.folder:
            return None
        if not place.has_images:
            what_folder(place.path, place.files)
        return cls(place.path, place.chosen)

    def __init__(self, root: Path, chosen: Selection | None = None) -> None:
        self.root = root.resolve()
        self.title = str(self.root)
        self.follow = chosen is not None and chosen.follow_links
        try:
            found, others = _walk(self.root, self.follow)
        except RecursionError as error:
            raise DataError(f"the folders in {self.root} are nested too deep") from error
        self.passed_over = by_ending(others)
        names = {cleaned(file): file for file in found}
        if len(names) < len(found):
            twice = next(file for file in found if names[cleaned(file)] != file)
            raise DataError(f"{self.root} has two files named {shown(cleaned(twice))}")
        listing = Listing(
            self.title, list(names), others, self._other, passed_over=self.passed_over
        )
        images, self.classes, self.labels, self.unlabelled, self.notes = classify(
            listing, chosen or Selection()
        )
        self.notes = [*self.notes, *_beside(self.root, others, self.passed_over)]
        self._files = [names[image] for image in images]
        self.identity = {
            "kind": "folder",
            "name": shown(self.root.name),
            "files": len(self._files),
            "listing_sha256": listing_hash((file, self._size(file)) for file in self._files),
        }

    def _other(self, name: str) -> bytes:
        try:
            with open_inside(self.root, self.root / name, self.follow) as file:
                return file.read(MAX_JSON_BYTES + 1)
        except BadImage as error:
            raise DataError(f"{self.root / name}: {error}") from error

    def _size(self, file: str) -> int:
        try:
            return (self.root / file).stat().st_size  # of what a link names
        except OSError:
            return -1

    def state(self) -> str:
        return times(self.root / file for file in self._files)

    def member(self, item: int) -> str:
        return self._files[item]

    @contextmanager
    def open(self, item: int) -> Iterator[IO[bytes]]:
        with open_inside(self.root, self.root / self._files[item], self.follow) as file:
            yield file


@contextmanager
def open_inside(root: Path, path: Path, follow: bool = False) -> Iterator[IO[bytes]]:
    """Open a regular file below a resolved folder; a link must lead to one, too, unless links are
    followed anywhere. Raises BadImage."""
    try:
        mode = path.lstat().st_mode
        real = path.resolve(strict=True)
    except (OSError, RuntimeError) as error:
        raise BadImage("cannot be read (broken link or vanished)") from error
    if not (follow or real.is_relative_to(root)):
        raise BadImage("symbolic link out of the folder, see --follow-links")
    if real.is_dir():
        is_link = stat.S_ISLNK(mode)
        raise BadImage(
            "symbolic link to a folder, see --follow-links" if is_link else "is a folder"
        )
    with open_regular(real) as file:
        yield file


def _beside(root: Path, others: list[str], passed_over: Mapping[str, int]) -> list[str]:
    """What is said of archives, tables and arrays that lie beside images."""
    data = [f"{count} {ending}" for ending, count in passed_over.items() if ending in DATA]
    if not data:
        return []
    first = min(name for name in others if os.path.splitext(name)[1].lower() in DATA)
    return [
        f"{root}: its images are read, and {', '.join(sorted(data))} beside them are not: to "
        f"convert these, move them to a folder of their own, or name one, such as {root / first}"
    ]


def _leading_back(root: Path, here: Path, links: list[str]) -> list[str]:
    """Links of a folder to where the walk has come from, or to what holds it."""
    if not links:
        return []
    way = [path.resolve() for path in (here, *here.parents) if path.is_relative_to(root)]
    targets = [(here / link).resolve() for link in links]
    back = [target in way or way[0].is_relative_to(target) for target in targets]
    return [link for link, leads_back in zip(links, back, strict=True) if leads_back]


def _walk(root: Path, follow: bool) -> tuple[list[str], list[str]]:
    """Image files below the root, relative to it, sorted, and other files; links to folders are
    entered when they are followed, else listed.

    Unless links are followed a class folder may not be one itself.
    """
    files: list[str] = []
    others: list[str] = []
    for folder, subfolders, names in os.walk(root, onerror=_stop, followlinks=follow):
        here = Path(folder)
        subfolders[:] = sorted(sub for sub in subfolders if not is_hidden(sub))
        links = [sub for sub in subfolders if (here / sub).is_symlink()]
        if follow:
            around = _leading_back(root, here, links)
            subfolders[:] = [sub for sub in subfolders if sub not in around]
            links = []
        elif here == root:
            whole = [link for link in links if not is_image(link)]
            if whole:
                raise DataError(
                    f"{root / whole[0]} is a symbolic link to a folder: follow it with "
                    f"--follow-links, or name its target"
                )
        inner = "" if here == root else f"{here.relative_to(root)}/"
        files += [inner + name for name in names + links if name in links or is_image(name)]
        others += [inner + name for name in names if not is_image(name) and not is_hidden(name)]
    return sorted(files), others


def _stop(error: OSError) -> None:
    """A folder that cannot be listed would be missing from the set without a word."""
    raise error
