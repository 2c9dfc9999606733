"""CIFAR-10's python version: pickles, of which nothing is run.

source = CifarSource(Path("cifar-10-python.tar.gz"), "train")
"""

from __future__ import annotations

import hashlib
import io
import os
import pickle
import pickletools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError
from fasttrain_data.sources.arrays import unpacked
from fasttrain_data.sources.base import ArraySource
from fasttrain_data.sources.place import Place
from fasttrain_data.tar import scan

__all__ = ["CifarSource"]

MAX_BATCH_BYTES = 64 << 20
MAX_PICKLE_STEPS = 1 << 19


class CifarSource(ArraySource):
    """CIFAR-10's python version: a folder `cifar-10-batches-py`, or the `.tar.gz` that holds it."""

    shape = (32, 32, 3)

    splits = True

    @classmethod
    def opened(cls, place: Place) -> CifarSource | None:
        packed = place.gzipped and "cifar" in place.path.name
        return cls(place.path, place.split) if packed or place.has("batches.meta") else None

    def __init__(self, path: Path, split: str) -> None:
        wanted = {"train": [f"data_batch_{n}" for n in range(1, 6)], "test": ["test_batch"]}
        if split not in wanted:
            raise DataError(f"--split is {split}: CIFAR-10 has train and test")
        read = _cifar_folder(path) if path.is_dir() else _cifar_archive(path)
        arrays: list[npt.NDArray[np.uint8]] = []
        labels: list[Any] = []
        try:
            for name in wanted[split]:
                batch = _unpickle(read(name), f"{path}/{name}")
                arrays.append(_cifar_array(batch[b"data"]))
                labels += batch[b"labels"]
            meta = _unpickle(read("batches.meta"), f"{path}/batches.meta")
            names = [_text(name) for name in meta[b"label_names"]]
            sound = all(type(n) is int and 0 <= n < len(names) for n in labels) and bool(names)
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(f"{path} does not hold what CIFAR-10's batches do") from error
        if not sound or len(labels) != sum(map(len, arrays)):
            raise DataError(f"{path}: labels and images do not belong together")
        self._pixels = np.concatenate(arrays).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        self.labels, self.classes = labels, names
        self.identity = {
            "kind": "cifar10",
            "name": split,
            "files": len(wanted[split]),
            "pixels_sha256": hashlib.sha256(np.ascontiguousarray(self._pixels).data).hexdigest(),
        }

    def member(self, item: int) -> str:
        return f"image {item}"

    def pixels(self, item: int) -> npt.NDArray[np.uint8]:
        return np.ascontiguousarray(self._pixels[item])


def _cifar_folder(path: Path) -> Callable[[str], bytes]:
    """Reads a batch of an unpacked archive."""

    def read(name: str) -> bytes:
        if not (path / name).is_file():
            raise DataError(f"no {name} in {path}: it is not CIFAR-10's python version")
        if (path / name).stat().st_size > MAX_BATCH_BYTES:
            raise DataError(f"{path}/{name} is larger than {MAX_BATCH_BYTES >> 20} MiB")
        return (path / name).read_bytes()

    return read


def _cifar_archive(path: Path) -> Callable[[str], bytes]:
    """Reads a batch of a gzipped tar."""
    file, size = unpacked(path, MAX_BATCH_BYTES * 8)
    places = {
        os.path.basename(member.name): member
        for member in scan(file, size, str(path))
        if member.kind is None and member.size <= MAX_BATCH_BYTES
    }

    def read(name: str) -> bytes:
        if name.encode() not in places:
            raise DataError(f"no {name} in {path}: it is not CIFAR-10's python version")
        place = places[name.encode()]
        file.seek(place.offset)
        return file.read(place.size)

    return read


def _text(value: Any) -> str:
    if not isinstance(value, str | bytes):  # of nested lists, `str` could ask for any memory
        raise TypeError("not a name")
    return value.decode() if isinstance(value, bytes) else value


class _Array:
    """Stands for a pickled NumPy array: its shape and bytes, as they were stored."""

    state: Any = None


def _cifar_array(array: _Array) -> npt.NDArray[np.uint8]:
    """uint8 [n, 3072] of what `_Array` took down."""
    _, shape, _, fortran, data = array.state
    if isinstance(data, str):  # a Python 2 string that went through an encoding
        data = data.encode("latin1")
    pixels = np.frombuffer(data, np.uint8)
    rows, columns = shape
    if fortran or type(rows) is not int or columns != 3072 or pixels.size != rows * 3072:
        raise ValueError("not an array of 32x32 colour images")
    return pixels.reshape(rows, 3072)


# What pickled dictionaries of strings, numbers, lists and arrays need. Others make the unpickler
# allocate what a few bytes ask for (BYTEARRAY8, or PUT: the C unpickler's memo is an array).
_OPCODES = frozenset(
    """PROTO FRAME MARK STOP NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 LONG1 EMPTY_DICT SETITEM
    SETITEMS EMPTY_LIST APPEND APPENDS EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3 SHORT_BINSTRING
    BINSTRING SHORT_BINBYTES BINBYTES SHORT_BINUNICODE BINUNICODE GLOBAL STACK_GLOBAL REDUCE BUILD
    MEMOIZE BINPUT LONG_BINPUT BINGET LONG_BINGET""".split()  # noqa: SIM905
)


class _Restricted(pickle._Unpickler):  # the one in Python: its memo is a dictionary
    """Calls nothing but three functions of its own, whatever the pickle names."""

    dispatch: ClassVar[dict[int, Any]] = dict(pickle._Unpickler.dispatch)

    def __init__(self, data: bytes) -> None:
        super().__init__(io.BytesIO(data), encoding="bytes")
        self._left = len(data)

    def find_class(self, module: str, name: str) -> Any:
        known: dict[tuple[str, str], Any] = {
            ("numpy.core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy._core.multiarray", "_reconstruct"): lambda *_: _Array(),
            ("numpy", "dtype"): lambda *_: _Array(),  # not looked at: sizes decide
            ("numpy", "ndarray"): "ndarray",
            ("_codecs", "encode"): self._encode,
        }
        if (module, name) not in known:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed")
        return known[module, name]

    def _encode(self, text: str, _: Any) -> bytes:
        self._left -= len(text)  # each text once: the same one again and again would fill memory
        if self._left < 0:
            raise pickle.UnpicklingError("more bytes than the file has")
        return text.encode("latin1")

    def load_build(self) -> None:
        state = self.stack.pop()  # type: ignore[attr-defined]
        if not isinstance(array := self.stack[-1], _Array):  # type: ignore[attr-defined]
            raise pickle.UnpicklingError("a state for what is no array")
        array.state = state

    dispatch[pickle.BUILD[0]] = load_build


def _unpickle(data: bytes, name: str) -> dict[Any, Any]:
    """A pickled dictionary with byte-string keys; nothing that it names is imported or run.

    Raises DataError.
    """
    try:
        for step, (opcode, _, _) in enumerate(pickletools.genops(data)):
            if opcode.name not in _OPCODES:
                raise pickle.UnpicklingError(f"opcode {opcode.name} is not allowed")
            if step > MAX_PICKLE_STEPS:
                raise pickle.UnpicklingError(f"more than {MAX_PICKLE_STEPS} steps")
        found = _Restricted(data).load()
        if not isinstance(found, dict):
            raise pickle.UnpicklingError("no dictionary")
        return {k.encode() if isinstance(k, str) else k: value for k, value in found.items()}
    except Exception as error:  # a hostile pickle can raise nearly anything
        why = (str(error).splitlines() or ["damaged"])[0][:200]
        raise DataError(f"{name} is not one of CIFAR-10's batches: {why}") from error
