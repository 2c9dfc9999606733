"""What is a class: the rules of folders, zips and tars alike.

    listing = Listing("photos", images=["cat/1.png", "dog/2.png"], others=[], read=read)
    found = classify(listing, Selection())
    found.classes, found.labels                 # ["cat", "dog"], [0, 1]

A file of labels decides where there is one (`label_files.py`), else the first folder.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from fasttrain_data.endings import LISTED, PICTURES
from fasttrain_data.errors import DataError, shown
from fasttrain_data.sources.label_files import PARTITION, Beside, Found, assign, find, read_file
from fasttrain_data.sources.names import by_folder, inside
from fasttrain_data.sources.selection import NO_LABELS, Selection

__all__ = ["Labelled", "Listing", "classify"]

SPLITS = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "dev"),
    "test": ("test", "testing"),
}
_SPLIT_OF = {name: split for split, names in SPLITS.items() for name in names}
_NUMBERED = re.compile(r"([0-9]{5})/[A-Za-z_]{0,8}([0-9]{5,8})\.[A-Za-z]+")


_REMEDIES = (
    (PICTURES, ": convert them to PNG or JPEG"),
    ((".npy", ".npz"), ": NumPy arrays are not read, write their images as PNG files"),
    ((".tgz", ".gz", ".rar", ".7z"), ": unpack them"),
    ((".zip", ".tar", ".parquet"), ": name one of these files"),
)
"""What to do with files of these endings where there are no images."""


class Listing(NamedTuple):
    """What a folder or an archive holds.

    Attributes:
        title: what it is called in a message.
        images: names of images, with slashes, sorted.
        others: names of other files.
        read: the content of one of these. Raises DataError.
        packed: whether a folder around everything is how it was packed, and no class.
        passed_over: of the others, how many of each ending.
    """

    title: str
    images: Sequence[str]
    others: Sequence[str]
    read: Callable[[str], bytes]
    packed: bool = False
    passed_over: Mapping[str, int] = Counter[str]()


class Labelled(NamedTuple):
    """The images that are read, with their classes.

    Attributes:
        images: names as in the listing.
        classes, labels: as `Source` has them.
        unlabelled: names of images that were left out because they have no label, and why.
        notes: lines that a user should see.
    """

    images: Sequence[str]
    classes: list[str]
    labels: Sequence[int]
    unlabelled: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()


def classify(listing: Listing, chosen: Selection) -> Labelled:
    """Labels by the file of labels that is chosen or lies there, else by first folder.

    Raises DataError when there are no images, or an image has no label.
    """
    if not listing.images:
        raise DataError(_nothing(listing))
    around = _around(listing.images)
    images, root = _split(listing, around, chosen.split)
    notes: list[str] = []
    if chosen.label_column == NO_LABELS:
        return Labelled(images, ["images"], [0] * len(images), notes=notes)
    beside = Beside(listing.title, images, listing.images, listing.others, listing.read)
    found: Found | None
    if chosen.labels is not None:
        found = assign(read_file(chosen.labels, chosen.label_column), beside, root, chosen)
    else:
        tables = find(beside, list(dict.fromkeys((root, around, ""))), chosen.label_column)
        found = assign(tables, beside, root, chosen) if tables else None
    if found is not None and found.classes:
        return Labelled(*found[:-1], notes=[*notes, *found.notes])
    if chosen.label_column is not None:
        raise DataError(
            f"--label-column is {shown(chosen.label_column)}: no file of labels with columns lies "
            f"in {listing.title}, see --labels"
        )
    notes += found.notes if found is not None else []
    names = [name[len(root) :] for name in images] if root else images
    if listing.packed and not root:
        names = inside(images)
    if _are_numbered(names):
        notes.append(
            f"{listing.title}: its folders only count the files, so that they are no classes: all "
            "images are one class"
        )
        return Labelled(images, ["images"], [0] * len(images), notes=notes)
    classes, labels = by_folder(names, listing.title)
    notes += _warning(classes, listing.title)
    notes += _unread(listing, classes) if found is None else []
    notes += _around_classes(f"{listing.title}/{root}", names) if not listing.packed else []
    return Labelled(images, classes, labels, notes=notes)


def _nothing(listing: Listing) -> str:
    looked = f"no images in {listing.title}: looked for {LISTED} files"
    if not listing.passed_over:
        return f"{looked} in class folders"
    endings = Counter[str]()
    for name, count in listing.passed_over.items():
        endings[name if name.startswith(".") else "without an ending"] += count
    most = sorted(endings.items(), key=lambda row: (-row[1], row[0]))[:3]
    there = ", ".join(f"{count} {shown(name)}" for name, count in most)
    remedy = next((words for known, words in _REMEDIES if most[0][0] in known), "")
    if listing.packed and remedy:
        remedy = f": unpack {os.path.basename(listing.title)} first"
    return f"{looked}, and there are {there}{remedy}"


def _around(images: Sequence[str]) -> str:
    """The one folder that everything lies in, with its slash, or nothing."""
    first, slash, _ = images[0].partition("/")
    around = first + slash
    return around if slash and all(name.startswith(around) for name in images) else ""


def _split(listing: Listing, around: str, split: str | None) -> tuple[Sequence[str], str]:
    """The images of a split, and the folder that they lie in if it is a split's."""
    images = listing.images
    if split is None:
        return images, ""
    if any(os.path.basename(name) == PARTITION for name in listing.others):
        return _partition(listing, split), ""
    for outer in dict.fromkeys(("", around)):
        parts = (name[len(outer) :].partition("/") for name in images)
        folders = sorted({folder for folder, slash, _ in parts if slash})
        there = {f: _SPLIT_OF[f.lower()] for f in folders if f.lower() in _SPLIT_OF}
        asked = _SPLIT_OF.get(split.lower(), split.lower())
        wanted = [f for f in there if there[f] == asked]
        exact = [f for f in wanted if f == split] or wanted
        if len(exact) > 1:
            raise DataError(
                f"--split is {split}: {listing.title} has the folders {' and '.join(exact)}"
            )
        if exact:
            root = f"{outer}{exact[0]}/"
            return [name for name in images if name.startswith(root)], root
        if there:
            raise DataError(
                f"--split is {split}: {listing.title} has the folders {', '.join(there)}"
            )
    if split != "train":
        raise DataError(
            f"--split is {split}: {listing.title} has no splits, name the images of that one"
        )
    return images, ""


def _partition(listing: Listing, split: str) -> list[str]:
    wanted = {"train": "0", "val": "1", "test": "2"}.get(split)
    if wanted is None:
        raise DataError(f"--split is {split}: {listing.title} has train, val and test")
    name = next(name for name in listing.others if os.path.basename(name) == PARTITION)
    rows = (line.split() for line in listing.read(name).decode("utf-8", "replace").splitlines())
    chosen = {row[0] for row in rows if len(row) == 2 and row[1] == wanted}
    images = [image for image in listing.images if os.path.basename(image) in chosen]
    if not images:
        raise DataError(f"{listing.title}/{name} has none of the images of the split {split}")
    return images


def _are_numbered(names: Sequence[str]) -> bool:
    """Whether folders of several only hold a thousand consecutive files each, as FFHQ's and those
    of EDM's dataset tool do: `01000/01234.png`, `00001/img00001234.png`."""
    folders = set()
    for name in names:
        match = _NUMBERED.fullmatch(name)
        if match is None:
            return False
        folder, number = int(match[1]), int(match[2])
        if number // 1000 not in (folder, folder / 1000):
            return False
        folders.add(folder)
    return len(folders) > 1


def _warning(classes: Sequence[str], title: str) -> list[str]:
    """Splits that become classes, as a rule by mistake."""
    if not all(name.lower() in _SPLIT_OF for name in classes):
        return []
    one = next((name for name in classes if _SPLIT_OF[name.lower()] == "train"), classes[0])
    return [
        f"warning: the folders {', '.join(classes)} of {title} became classes; one of them alone: "
        f"fasttrain-data convert {title} OUT --split {one}"
    ]


def _around_classes(title: str, names: Sequence[str]) -> list[str]:
    """One folder with folders of images in it: these may be the classes."""
    around = _around(names)
    inner = sorted({name.split("/")[1] for name in names if name.count("/") > 1}) if around else []
    if len(inner) < 2 or any(name.count("/") < 2 for name in names):
        return []
    return [
        f"all images are one class, because all are in the folder {around[:-1]}: if the folders in "
        f"it ({', '.join(inner[:3])}{', ...' if len(inner) > 3 else ''}) are the classes, name "
        f"{title}{around[:-1]}"
    ]


def _unread(listing: Listing, classes: Sequence[str]) -> list[str]:
    """A table beside images of one class, which may have their labels."""
    tables = [name for name in listing.others if name.lower().endswith((".csv", ".tsv"))]
    if len(classes) > 1 or listing.packed or not tables:
        return []
    table = f"{listing.title}/{tables[0]}"
    return [f"all images are one class: if {table} has their labels, use --labels {table}"]
