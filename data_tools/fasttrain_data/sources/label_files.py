"""Files of labels beside images: which there are, and which image has which label.

    tables = find(beside, roots=[""], column=None)
    found = assign(tables, beside, "", Selection())

`label_tables.py` parses them. Names in a table are relative to its folder; most publishers write
the last part of a path alone, some without its ending.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from fasttrain_data.errors import DataError, shown
from fasttrain_data.sources.label_table import LabelTable
from fasttrain_data.sources.label_tables import parse_labels
from fasttrain_data.sources.names import class_order
from fasttrain_data.sources.numbers import LARGEST, classes_of
from fasttrain_data.sources.selection import Selection

__all__ = ["Beside", "Found", "assign", "find", "is_label_file", "read_file"]
__all__ += ["PARTITION"]

NAMES = (
    "dataset.json",
    "metadata.jsonl",
    "metadata.csv",
    "val_annotations.txt",
    "list_attr_celeba.txt",
    "list_attr_celeba.csv",
    "ILSVRC2012_validation_ground_truth.txt",
    "LOC_val_solution.csv",
    "imagelabels.mat",
)
"""What is read without being asked for. Hugging Face's `metadata` may lie in every folder."""
PARTITION = "list_eval_partition.txt"
"""CelebA's splits: a file and a number a line."""
MAX_FILE_BYTES = 64 << 20


def is_label_file(name: str) -> bool:
    """Whether a file, with folders or not, may be looked at."""
    return os.path.basename(name) in (*NAMES, PARTITION, "meta.mat")


class Beside(NamedTuple):
    """Images, those of all splits, and the files that may hold their labels."""

    title: str
    images: Sequence[str]
    every: Sequence[str]
    others: Sequence[str]
    read: Callable[[str], bytes]


class Found(NamedTuple):
    """As `classes.Labelled`; without classes where a table has no labels."""

    images: Sequence[str]
    classes: list[str]
    labels: Sequence[int]
    unlabelled: Sequence[tuple[str, str]]
    notes: list[str]


def read_file(path: Path, column: str | None) -> list[LabelTable]:
    """The labels in a file of its own. Raises DataError."""
    if path.is_dir():  # ImageNet's development kit, for one
        inner = [folder / name for folder in (path, path / "data") for name in NAMES]
        file = next((file for file in inner if file.is_file()), None)
        if file is None:
            raise DataError(f"--labels: {path} is a folder without {', '.join(NAMES)}")
        path = file
    if not path.is_file():
        raise DataError(f"--labels: {path} is not a file of labels")

    def read(name: str) -> bytes:
        file = path.parent / name
        if not file.is_file():
            raise DataError(f"no {name} beside {path}")
        if file.stat().st_size > MAX_FILE_BYTES:
            raise DataError(f"{file} is larger than {MAX_FILE_BYTES >> 20} MiB")
        return file.read_bytes()

    table = parse_labels(path.name, str(path), read, column, asked=True)
    if not table.labels and not table.single:
        raise DataError(table.hint or f"{path}: no labels in it")
    return [table._replace(anywhere=True)]


def find(beside: Beside, roots: Sequence[str], column: str | None) -> list[LabelTable]:
    """The tables of the first kind of file that lies in one of the folders `roots`."""
    there = frozenset(beside.others)
    for name in NAMES:
        paths = [root + name for root in roots if root + name in there][:1]
        if name.startswith("metadata."):
            every = sorted(path for path in there if os.path.basename(path) == name)
            paths = [path for path in every if path.startswith(roots[0])] or paths
        if paths:
            return [_beside(beside, path, column) for path in paths]
    return []


def _beside(beside: Beside, path: str, column: str | None) -> LabelTable:
    folder = path[: path.rfind("/") + 1]
    table = parse_labels(
        os.path.basename(path),
        f"{beside.title}/{path}",
        lambda name: beside.read(folder + name),
        column,
    )
    return table._replace(folder=folder)


def assign(tables: Sequence[LabelTable], beside: Beside, root: str, chosen: Selection) -> Found:
    """The label of each image. Raises DataError for one that no table names, unless these are left
    out, and for a name that is not there, where a table is to name all and nothing else."""
    notes = [note for table in tables for note in table.notes]
    names = ", ".join(os.path.basename(table.where) for table in tables[:1])
    if any(table.single for table in tables):
        return Found(beside.images, ["images"], [0] * len(beside.images), (), notes)
    if not any(table.labels for table in tables):
        return Found((), [], (), (), [*notes, *(t.hint for t in tables if t.hint)])
    labels: dict[str, str | int] = {}
    for table in tables:
        matched, gone = _matched(table, beside, root)
        labels |= matched
        if gone:
            notes.append(f"{table.where}: {gone} of its {len(table.labels)} images are not there")
    images = [image for image in beside.images if image in labels]
    missing = [image for image in beside.images if image not in labels]
    if missing and (chosen.unlabelled == "refuse" or not images):
        raise DataError(
            f"{tables[0].where} does not name {len(missing)} of {len(beside.images)} images, "
            f"{shown(missing[0])} for one: complete it, or leave them out with --unlabelled skip"
        )
    classes, numbers, more = _numbered([labels[image] for image in images], tables)
    left_out = [(image, f"no label in {names}") for image in missing]
    return Found(images, classes, numbers, left_out, [*notes, *more])


def _matched(table: LabelTable, beside: Beside, root: str) -> tuple[dict[str, str | int], int]:
    """Label by image, of the images that a table names; and how many names are not there."""
    folder = root if table.anywhere else table.folder
    found: dict[str, str | int] = {}
    seen = set()
    keys = _KEYS[:1] if table.exact else _KEYS[3:] if table.numbered else _KEYS[:3]
    for key in keys:
        places: dict[str, str] = {}
        twice = Counter[str]()
        for image in beside.images:
            if image.startswith(folder) and image not in found:
                name = key(image[len(folder) :])
                twice[name] += name in places
                places[name] = image
        for name, label in table.labels.items():
            if name in places and name not in seen:
                if twice[name]:
                    raise DataError(
                        f"{table.where} names {shown(name)}, and {twice[name] + 1} images are so "
                        f"called, {shown(places[name])} for one: write their paths"
                    )
                found[places[name]] = label
                seen.add(name)
        if len(seen) == len(table.labels):
            break
    gone = [name for name in table.labels if name not in seen]
    if gone and table.exact:  # but for images of other splits
        every = {image[len(folder) :] for image in beside.every if image.startswith(folder)}
        gone = [name for name in gone if name not in every]
    if gone and (table.exact or not seen):
        raise DataError(
            f"{table.where} names {shown(gone[0])}, which is not there{_nearly(gone[0], beside)}"
        )
    return found, len(gone)


def _nearly(name: str, beside: Beside) -> str:
    """An image of the same name in another folder or other letters, in words."""
    wanted = os.path.basename(name).lower()
    near = [image for image in beside.images if os.path.basename(image).lower() == wanted]
    if not near:
        return ""
    letters = os.path.basename(near[0]) != os.path.basename(name)
    remedy = "in the same letters" if letters else "from the table's folder"
    return f", but {shown(near[0])} is: write paths {remedy}"


_KEYS: tuple[Callable[[str], str], ...] = (
    lambda name: name,
    os.path.basename,
    lambda name: os.path.splitext(os.path.basename(name))[0],
    lambda name: str(_number(os.path.splitext(os.path.basename(name))[0])),
)
"""What a table calls an image: its path, its file name, that without the ending; or its number."""


def _number(stem: str) -> int | None:
    """The number that a name ends in: 7 of ILSVRC2012_val_00000007."""
    digits = stem[len(stem.rstrip("0123456789")) :]
    return int(digits) if 0 < len(digits) <= 12 else None


def _numbered(
    values: Sequence[str | int], tables: Sequence[LabelTable]
) -> tuple[list[str], list[int], list[str]]:
    """Class names, the number of each value, and lines that a user should see."""
    where, fixed = tables[0].where, tables[0].classes
    numbers = [value for value in values if type(value) is int]
    if numbers and len(numbers) < len(values):
        text = next(value for value in values if type(value) is not int)
        raise DataError(
            f"{where} has the label {numbers[0]} and the label {shown(text)!r}: class numbers and "
            "names do not go together"
        )
    if numbers:
        low, high = min(numbers), max(numbers)
        if low < 0 or high > LARGEST:
            raise DataError(
                f"{where} has the label {low if low < 0 else high}: class numbers are 0 to "
                f"{LARGEST}"
            )
        classes, label, notes = classes_of(set(numbers), where)
        return classes, [label[number] for number in numbers], notes
    names = list(fixed) if fixed else sorted({str(v) for v in values}, key=class_order)
    place = {name: number for number, name in enumerate(names)}
    return names, [place[str(value)] for value in values], []
