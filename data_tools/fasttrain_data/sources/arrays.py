"""Pixels that come as arrays: scikit-learn's digits and IDX files; and what is gzipped."""

from __future__ import annotations

import gzip
import hashlib
import math
import re
import struct
import tempfile
import zlib
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError, shown
from fasttrain_data.sources.base import ArraySource
from fasttrain_data.sources.place import Place

__all__ = ["DigitsSource", "IdxSource", "unpacked"]

MAX_ARRAY_BYTES = 1 << 30
MOST_DEFLATED = 1040
"""Largest expansion of a byte of a gzip file."""
_PIECE = 1 << 20


class DigitsSource(ArraySource):
    """scikit-learn's digits: 1,797 grey images of 8x8, values 0..16 as round(v * 255 / 16).

    The one tie, 8 -> 127.5, becomes 128.
    """

    images_per_shard = 128
    shape = (8, 8, 1)

    @classmethod
    def opened(cls, place: Place) -> DigitsSource | None:
        return cls() if place.name == "digits" else None

    def __init__(self) -> None:
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise DataError("`digits` needs scikit-learn: pip install scikit-learn") from error
        digits = load_digits()
        pixels = ((digits.images.astype(np.uint32) * 255 + 8) // 16).astype(np.uint8)
        self._pixels = pixels[..., None]
        self.labels = digits.target
        self.classes = [str(digit) for digit in range(10)]
        self.identity = {"kind": "digits", "images": len(self.labels)}

    def member(self, item: int) -> str:
        return f"digit {item}"

    def pixels(self, item: int) -> npt.NDArray[np.uint8]:
        return self._pixels[item]


class IdxSource(ArraySource):
    """The MNIST family's format: `train-images-idx3-ubyte` and `train-labels-idx1-ubyte`, each
    gzipped or not; `t10k-...` for the split `test`."""

    options = frozenset({"split"})

    @classmethod
    def opened(cls, place: Place) -> IdxSource | None:
        path = place.path
        if place.head[:3] == b"\0\0\x08" or (place.gzipped and "-idx" in path.name):
            raise DataError(f"{path} is one file of an IDX set: name the folder that holds them")
        known = any(re.search(r"[-.]idx3-ubyte", name) for name in place.files)
        return cls(path, place.chosen.split or "train") if known else None

    def __init__(self, folder: Path, split: str) -> None:
        prefix = {"train": "train", "test": "t10k"}.get(split)
        if prefix is None:
            raise DataError(f"--split is {split}: IDX files have train and test")
        images, labels = (_find_idx(folder, prefix, what) for what in ("images", "labels"))
        array = _read_idx(images)
        numbers = _read_idx(labels)
        if array.ndim != 3 or numbers.ndim != 1 or len(array) != len(numbers):
            raise DataError(
                f"{images} has shape {list(array.shape)}, {labels.name} {list(numbers.shape)}: "
                "they are not the images and the labels of one set"
            )
        self._pixels = array[..., None]
        self.shape = self._pixels.shape[1:]
        self.labels = numbers.astype(np.int64)
        self.classes = [str(label) for label in range(int(numbers.max()) + 1)]
        self.identity = {
            "kind": "idx",
            "name": shown(f"{folder.resolve().name}/{prefix}"),
            "files": 2,
            "pixels_sha256": hashlib.sha256(array.data).hexdigest(),
        }
        self._name = images.name

    def member(self, item: int) -> str:
        return f"{self._name} image {item}"

    def pixels(self, item: int) -> npt.NDArray[np.uint8]:
        return self._pixels[item]


def _find_idx(folder: Path, prefix: str, what: str) -> Path:
    dimensions = 3 if what == "images" else 1
    for name in (
        f"{prefix}-{what}-idx{dimensions}-ubyte",
        f"{prefix}-{what}.idx{dimensions}-ubyte",
    ):
        for ending in ("", ".gz"):
            if (folder / (name + ending)).is_file():
                return folder / (name + ending)
    raise DataError(f"no {prefix}-{what}-idx{dimensions}-ubyte or .gz in {folder}")


def _read_idx(path: Path) -> npt.NDArray[np.uint8]:
    """A uint8 array of an IDX file: its header says what there is, and not a byte more is read. A
    header that claims more than the file can hold is not believed."""
    gzipped = path.suffix == ".gz"
    try:
        with gzip.open(path) if gzipped else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 3:
                raise DataError(f"{path} is not an IDX file of bytes")
            sides = file.read(4 * magic[3])
            shape = struct.unpack(f">{len(sides) // 4}I", sides[: len(sides) & ~3])
            size = math.prod(shape)
            most = path.stat().st_size * (MOST_DEFLATED if gzipped else 1)
            if len(shape) != magic[3] or size > min(most, MAX_ARRAY_BYTES):
                raise DataError(f"{path} claims the shape {list(shape)}: too large, or cut short")
            if not size:
                raise DataError(f"no images in {path}")
            array = np.empty(size, np.uint8)
            found = _fill(file, array.data)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if found != size:
        raise DataError(f"{path} is cut short: {found} of {size} bytes")
    return array.reshape(shape)


def _fill(file: Any, view: memoryview) -> int:
    """Read until a view is full or the file ends; how many bytes came."""
    done = 0
    while done < len(view) and (more := file.readinto(view[done : done + _PIECE])):
        done += more
    return done


def unpacked(path: Path, cap: int) -> tuple[IO[bytes], int]:
    """What a gzip file holds as a temporary file, and its size, at most `cap`. Raises DataError."""
    file = tempfile.TemporaryFile()  # noqa: SIM115
    size = 0
    try:
        with gzip.open(path) as source:
            while size <= cap and (piece := source.read(_PIECE)):
                size += file.write(piece)
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be unpacked: {error}") from error
    if size > cap:
        raise DataError(f"{path} holds more than {cap >> 20} MiB")
    file.seek(0)
    return file, size
