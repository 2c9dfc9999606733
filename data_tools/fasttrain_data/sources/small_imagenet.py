"""The downsampled ImageNets (8x8 to 64x64, Chrabaszcz et al. 2017): pickled batches of pixels.

    source = SmallImageNetSource(Path("Imagenet64_train"), Selection())

Their labels are 1 to 1,000 in an order of their own, not that of the sorted WordNet names, so the
classes get names where `map_clsloc.txt` lies beside: then `--class-names` tells them apart.
"""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np

from fasttrain_data.errors import DataError, shown
from fasttrain_data.sources.base import listing_hash, times
from fasttrain_data.sources.batches import BatchSource, mapped
from fasttrain_data.sources.pickled import load_table
from fasttrain_data.sources.place import Place
from fasttrain_data.sources.selection import NO_LABELS, Selection

__all__ = ["SmallImageNetSource"]

CLASSES = 1000
SIDES = {3 * side * side: side for side in (8, 16, 32, 64)}
_BATCH = re.compile(r"train_data_batch_([0-9]{1,3})")
_VALIDATION = "val_data"
_NAMES = "map_clsloc.txt"


class SmallImageNetSource(BatchSource):
    """A folder of `train_data_batch_1`, ..., of `val_data`, or both. Files are mapped, not read."""

    options = frozenset({"split", "label_column"})

    @classmethod
    def opened(cls, place: Place) -> SmallImageNetSource | None:
        known = not place.files.isdisjoint((_VALIDATION, "train_data_batch_1"))
        return cls(place.path, place.chosen) if known else None

    def __init__(self, folder: Path, chosen: Selection) -> None:
        self.title = str(folder)
        self._files = _files(folder, chosen.split)
        if chosen.label_column not in (None, NO_LABELS, "labels"):
            raise DataError(
                f"--label-column is {shown(chosen.label_column)}: {folder} has labels; or none"
            )
        batches, labels = [], []
        for file in self._files:
            table = load_table(mapped(file), str(file), "the batches of a small ImageNet")
            try:
                columns = table["data"].columns
                side = SIDES.get(columns, 0)
                batches.append(table["data"].rows(columns))
                numbers = np.asarray(table["labels"], np.int64)
                sound = numbers.ndim == 1 and len(numbers) == len(batches[-1])
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
                raise DataError(
                    f"{file} does not hold what a small ImageNet's batch does"
                ) from error
            if not side or not sound or numbers.min() < 1 or numbers.max() > CLASSES:
                raise DataError(
                    f"{file}: its labels are not 1 to {CLASSES}, or its images not of one of "
                    f"{', '.join(f'{n}x{n}' for n in SIDES.values())}"
                )
            if len(batches) > 1 and columns != batches[0].shape[1]:
                raise DataError(f"{file} and {self._files[0].name} have images of several sizes")
            labels.append(numbers - 1)
        self.shape = (side, side, 3)
        self.classes = _names(folder)
        found = np.concatenate(labels)
        if chosen.label_column == NO_LABELS:
            self.classes, found = ["images"], np.zeros_like(found)
        self._take(batches, found)
        self.identity = {
            "kind": "small-imagenet",
            "name": shown(folder.resolve().name),
            "files": len(self._files),
            "listing_sha256": listing_hash((f.name, f.stat().st_size) for f in self._files),
        }

    def state(self) -> str:
        return times(self._files)


def _files(folder: Path, split: str | None) -> list[Path]:
    numbers = sorted(
        int(match[1]) for entry in folder.iterdir() if (match := _BATCH.fullmatch(entry.name))
    )
    there = ["train"] if numbers else []
    if (folder / _VALIDATION).is_file():
        there.append("val")
    split = split or there[0]
    if split not in there:
        raise DataError(f"--split is {split}: {folder} has {' and '.join(there)}")
    if split == "val":
        return [folder / _VALIDATION]
    missing = set(range(1, numbers[-1] + 1)) - set(numbers)
    if missing:
        raise DataError(f"no train_data_batch_{min(missing)} in {folder}: the set is not complete")
    return [folder / f"train_data_batch_{number}" for number in numbers]


def _names(folder: Path) -> list[str]:
    """By lines such as `n02119789 1 kit_fox`; else the labels."""
    file = folder / _NAMES
    if not file.is_file():
        return [str(label) for label in range(1, CLASSES + 1)]
    rows = [line.split() for line in file.read_text("utf-8", "replace").splitlines() if line]
    names = {row[1]: row[0] for row in rows if len(row) >= 2}
    wanted = [str(number) for number in range(1, CLASSES + 1)]
    if not all(number in names for number in wanted):
        raise DataError(f"{file} does not name the classes 1 to {CLASSES}: correct or remove it")
    return [names[number] for number in wanted]
