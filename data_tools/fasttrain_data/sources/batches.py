"""Files of many small pictures of one size, as arrays: what their sources have in common.

files = open_files(Path("cifar-10-python.tar.gz"))      # or the folder
files.names, files.read("cifar-10-batches-py/test_batch")
"""

from __future__ import annotations

import hashlib
import mmap
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError
from fasttrain_data.sources.arrays import unpacked
from fasttrain_data.sources.base import ArraySource
from fasttrain_data.tar import scan

__all__ = ["MAX_ARCHIVE_BYTES", "MAX_BATCH_BYTES", "BatchSource", "Files", "open_files"]

MAX_BATCH_BYTES = 256 << 20
"""CIFAR-100's training images have 155 MB."""
MAX_ARCHIVE_BYTES = 512 << 20


class Files(NamedTuple):
    """Files by their names, from a folder or out of a packed one.

    Attributes:
        title: what they are called in a message.
        names: without folders.
        read: the content of one. Raises DataError.
    """

    title: str
    names: frozenset[str]
    read: Callable[[str], memoryview]


def open_files(path: Path) -> Files:
    """The files of a folder, or of a gzipped tar. Raises DataError."""
    return _folder(path) if path.is_dir() else _archive(path)


def _folder(path: Path) -> Files:
    def read(name: str) -> memoryview:
        file = path / name
        if not file.is_file():
            raise DataError(f"no {name} in {path}: the set is not complete")
        if file.stat().st_size > MAX_BATCH_BYTES:
            raise DataError(f"{file} is larger than {MAX_BATCH_BYTES >> 20} MiB")
        return memoryview(file.read_bytes())

    return Files(str(path), frozenset(entry.name for entry in path.iterdir()), read)


def _archive(path: Path) -> Files:
    file, size = unpacked(path, MAX_ARCHIVE_BYTES)
    places = {
        os.path.basename(member.name).decode("utf-8", "replace"): member
        for member in scan(file, size, str(path))
        if member.kind is None and member.size <= MAX_BATCH_BYTES
    }

    def read(name: str) -> memoryview:
        if name not in places:
            raise DataError(f"no {name} in {path}: the set is not complete")
        file.seek(places[name].offset)
        return memoryview(file.read(places[name].size))

    return Files(str(path), frozenset(places), read)


def mapped(path: Path) -> memoryview:
    """A large file's bytes, which the kernel reads as they are looked at. Raises DataError."""
    if not path.is_file():
        raise DataError(f"no {path.name} in {path.parent}: the set is not complete")
    if not path.stat().st_size:
        raise DataError(f"{path} is empty")
    with path.open("rb") as file:
        return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


class BatchSource(ArraySource):
    """Rows of uint8 [C * H * W] in several arrays, planes one after another.

    transposed: the columns of a plane come one after another, as MATLAB has it.
    """

    transposed = False

    def _take(
        self, batches: Sequence[npt.NDArray[np.uint8]], labels: npt.NDArray[np.int64]
    ) -> None:
        """Raises DataError unless there is a label for each image."""
        self._batches = batches
        self._ends = np.cumsum([len(batch) for batch in batches])
        if len(labels) != self._ends[-1] or not len(labels):
            raise DataError(f"{self.title}: {self._ends[-1]} images and {len(labels)} labels")
        self.labels = labels

    title: str
    """What the source is called in a message."""

    def member(self, item: int) -> str:
        return f"image {item}"

    def pixels(self, item: int) -> npt.NDArray[np.uint8]:
        batch = int(np.searchsorted(self._ends, item, "right"))
        first = int(self._ends[batch]) - len(self._batches[batch])
        height, width, channels = self.shape
        planes = self._batches[batch][item - first].reshape(channels, height, width)
        axes = (2, 1, 0) if self.transposed else (1, 2, 0)
        return np.ascontiguousarray(planes.transpose(axes))

    def pixels_hash(self) -> str:
        """SHA-256 of all pixels, [n, H, W, C]."""
        digest = hashlib.sha256()
        for item in range(len(self)):
            digest.update(self.pixels(item).data)
        return digest.hexdigest()
