"""Pixels that come as arrays: scikit-learn's digits, IDX files, CIFAR-10's python batches."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import pickletools
import re
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError
from fasttrain_data.sources.base import ArraySource, listing_hash
from fasttrain_data.tar import scan

__all__ = ["CifarSource", "DigitsSource", "IdxSource"]

MAX_ARRAY_BYTES = 4 << 30


class DigitsSource(ArraySource):
    """scikit-learn's digits: 1,797 grey images of 8x8, values 0..16 as round(v * 255 / 16).

    The one tie, 8 -> 127.5, becomes 128.
    """

    images_per_shard = 128
    shape = (8, 8, 1)

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
        if not array.size:
            raise DataError(f"no images in {images}")
        self._pixels = array[..., None]
        self.shape = self._pixels.shape[1:]
        self.labels = numbers.astype(np.int64)
        self.classes = [str(label) for label in range(int(numbers.max()) + 1)]
        self.identity = {
            "kind": "idx",
            "name": f"{folder.resolve().name}/{prefix}",
            "files": 2,
            "listing_sha256": listing_hash(
                (os.path.splitext(path.name)[0] if path.suffix == ".gz" else path.name, size)
                for path, size in ((images, array.nbytes), (labels, numbers.nbytes))
            ),
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
    """A uint8 array of an IDX file: its header says what there is, and not a byte more is read."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            magic = file.read(4)
            if len(magic) < 4 or magic[:3] != b"\0\0\x08" or not 1 <= magic[3] <= 3:
                raise DataError(f"{path} is not an IDX file of bytes")
            shape = tuple(np.frombuffer(file.read(4 * magic[3]), ">u4").astype(int).tolist())
            size = int(np.prod(shape, dtype=object))
            if len(shape) != magic[3] or size > MAX_ARRAY_BYTES:
                raise DataError(f"{path} claims the shape {list(shape)}: too large, or cut short")
            data = b"".join(_pieces(file, size))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(data) != size:
        raise DataError(f"{path} is cut short: {len(data)} of {size} bytes")
    return np.frombuffer(data, np.uint8).reshape(shape)


def _pieces(file: Any, size: int) -> Iterator[bytes]:
    while size and (piece := file.read(min(size, 1 << 20))):
        size -= len(piece)
        yield piece


class CifarSource(ArraySource):
    """CIFAR-10's python version: a folder `cifar-10-batches-py`, or the `.tar.gz` that holds it."""

    shape = (32, 32, 3)

    def __init__(self, path: Path, split: str) -> None:
        wanted = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}
        if split not in wanted:
            raise DataError(f"--split is {split}: CIFAR-10 has train and test")
        files = _cifar_files(path)
        parts = []
        for name in [*wanted[split], "batches.meta"]:
            if name not in files:
                raise DataError(f"no {name} in {path}: it is not CIFAR-10's python version")
            parts.append(_unpickle(files[name], f"{path}/{name}"))
        *batches, meta = parts
        try:
            names = [_text(name) for name in meta[b"label_names"]]
            arrays = [_cifar_array(batch[b"data"]) for batch in batches]
            labels = [label for batch in batches for label in batch[b"labels"]]
            sound = all(type(n) is int and 0 <= n < len(names) for n in labels) and bool(names)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} does not hold what CIFAR-10's batches do") from error
        if not sound or len(labels) != sum(map(len, arrays)):
            raise DataError(f"{path}: labels and images do not belong together")
        self._pixels = np.concatenate(arrays).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        self.labels, self.classes = labels, names
        self.identity = {
            "kind": "cifar10",
            "name": split,
            "files": len(batches),
            "listing_sha256": listing_hash((name, len(files[name])) for name in wanted[split]),
        }

    def member(self, item: int) -> str:
        return f"image {item}"

    def pixels(self, item: int) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(self._pixels[item])


def _cifar_files(path: Path) -> dict[str, bytes]:
    """The batches' bytes by name, of a folder or a gzipped tar."""
    if path.is_dir():
        return {
            entry.name: entry.read_bytes()
            for entry in sorted(path.iterdir())
            if re.fullmatch(r"data_batch_[1-5]|test_batch|batches\.meta", entry.name)
            and entry.is_file()
            and entry.stat().st_size <= MAX_BATCH_BYTES
        }
    data = read_gzip(path, MAX_BATCH_BYTES * 8)
    found = {}
    for member in scan(io.BytesIO(data), len(data), str(path)):
        if member.kind is None and member.size <= MAX_BATCH_BYTES:
            name = os.path.basename(member.name.decode("ascii", "replace"))
            found[name] = data[member.offset : member.offset + member.size]
    return found


MAX_BATCH_BYTES = 64 << 20


def read_gzip(path: Path, cap: int) -> bytes:
    """The content of a file, gzipped or not, of at most `cap` bytes. Raises DataError."""
    try:
        with path.open("rb") as probe:
            gzipped = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path) if gzipped else path.open("rb") as file:
            data = b"".join(_pieces(file, cap + 1))
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(data) > cap:
        raise DataError(f"{path} holds more than {cap >> 20} MiB")
    return data


def _text(value: Any) -> str:
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)


class _Array:
    """Stands for a pickled NumPy array: its shape and bytes, as they were stored."""

    def __setstate__(self, state: Any) -> None:
        self.state = state


def _cifar_array(array: _Array) -> npt.NDArray[np.uint8]:
    """uint8 [n, 3072] of what `_Array` took down."""
    _, shape, _, fortran, data = array.state
    if isinstance(data, str):  # a Python 2 string that went through an encoding
        data = data.encode("latin1")
    pixels = np.frombuffer(data, np.uint8)
    rows, columns = shape
    if fortran or columns != 3072 or pixels.size != rows * columns:
        raise ValueError("not an array of 32x32 colour images")
    return pixels.reshape(rows, columns)


class _Dtype:
    """Stands for a pickled dtype, which is not looked at: sizes decide."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


_STANDINS = {
    "_reconstruct": lambda *_: _Array(),
    "ndarray": "ndarray",
    "dtype": _Dtype,
    "encode": lambda text, _: text.encode("latin1"),
}
# What pickled dictionaries of strings, numbers, lists and arrays need. Others make the unpickler
# allocate what a few bytes ask for (BYTEARRAY8, or PUT: the C unpickler's memo is an array).
_OPCODES = frozenset(
    """PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 EMPTY_DICT SETITEM
    SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 SHORT_BINSTRING
    BINSTRING SHORT_BINBYTES BINBYTES SHORT_BINUNICODE BINUNICODE GLOBAL STACK_GLOBAL REDUCE BUILD
    MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET""".split()  # noqa: SIM905
)


class _Restricted(pickle._Unpickler):  # the one in Python: its memo is a dictionary
    def find_class(self, module: str, name: str) -> Any:
        known = {
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
            ("numpy", "ndarray"),
            ("numpy", "dtype"),
            ("_codecs", "encode"),
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return _STANDINS[name]


def _unpickle(data: bytes, name: str) -> dict[Any, Any]:
    """A pickled dictionary with byte-string keys; nothing that it names is imported or run.

    Raises DataError.
    """
    try:
        for opcode, _, _ in pickletools.genops(data):
            if opcode.name not in _OPCODES:
                raise pickle.UnpicklingError(f"opcode {opcode.name} is not allowed")
        found = _Restricted(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a hostile pickle can raise nearly anything
        why = (str(error).splitlines() or ["damaged"])[0][:200]
        raise DataError(f"{name} is not one of CIFAR-10's batches: {why}") from error
    if not isinstance(found, dict):
        raise DataError(f"{name} is not one of CIFAR-10's batches: no dictionary")
    return {key.encode() if isinstance(key, str) else key: value for key, value in found.items()}
