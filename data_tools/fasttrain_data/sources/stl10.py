"""STL-10's binary version: 96x96 colour images, `train_X.bin` and `train_y.bin`.

source = Stl10Source(Path("stl10_binary"), Selection(split="unlabeled"))
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fasttrain_data.errors import DataError, shown
from fasttrain_data.sources.base import listing_hash, times
from fasttrain_data.sources.batches import BatchSource, mapped
from fasttrain_data.sources.place import Place
from fasttrain_data.sources.selection import NO_LABELS, Selection

__all__ = ["Stl10Source"]

SPLITS = ("train", "test", "unlabeled")


class Stl10Source(BatchSource):
    """The folder `stl10_binary`. Images lie as MATLAB has them, column by column; labels are 1 to
    10, and `unlabeled` has none: one class."""

    shape = (96, 96, 3)
    transposed = True

    options = frozenset({"split", "label_column"})

    @classmethod
    def opened(cls, place: Place) -> Stl10Source | None:
        known = any(f"{split}_X.bin" in place.files for split in SPLITS)
        return cls(place.path, place.chosen) if known else None

    def __init__(self, folder: Path, chosen: Selection) -> None:
        self.title = str(folder)
        split = chosen.split or "train"
        if split not in SPLITS:
            raise DataError(f"--split is {split}: STL-10 has {', '.join(SPLITS)}")
        if chosen.label_column not in (None, NO_LABELS):
            raise DataError(
                f"--label-column is {shown(chosen.label_column)}: STL-10 has one; or none"
            )
        images = folder / f"{split}_X.bin"
        self._paths = [images]
        data, size = mapped(images), 96 * 96 * 3
        if len(data) % size:
            raise DataError(f"{images} is cut short: {len(data)} bytes, not {size} each")
        pixels = np.frombuffer(data, np.uint8).reshape(-1, size)
        if split == "unlabeled" or chosen.label_column == NO_LABELS:
            self.classes, labels = ["images"], np.zeros(len(pixels), np.int64)
        else:
            file = folder / f"{split}_y.bin"
            self._paths.append(file)
            labels = np.frombuffer(mapped(file), np.uint8).astype(np.int64) - 1
            self.classes = _names(folder)
            if labels.min() < 0 or labels.max() >= len(self.classes):
                raise DataError(f"{file}: its labels are not 1 to {len(self.classes)}")
        self._take([pixels], labels)
        self.identity = {
            "kind": "stl10",
            "name": split,
            "files": len(self._paths),
            "listing_sha256": listing_hash((f.name, f.stat().st_size) for f in self._paths),
        }

    def state(self) -> str:
        return times(self._paths)


def _names(folder: Path) -> list[str]:
    file = folder / "class_names.txt"
    if not file.is_file():
        return [str(label) for label in range(1, 11)]
    return [
        line.strip() for line in file.read_text("utf-8", "replace").splitlines() if line.strip()
    ]
