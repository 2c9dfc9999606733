"""Tensors from torch's files without torch's loaders: the zip files of `torch.save`, its earlier
format, and tensors in a plain pickle.

All three describe a tensor as a view (offset, size, strides) of a storage. In a zip a storage is an
uncompressed record `data/KEY`; in the older layout, and in a plain pickle for each storage alone,
five pickles come first (magic number, version, system, object, keys), then a count and the bytes
of each storage. `torch.load` on the latter allows everything, so they are parsed here.

    reader = TorchReader(size_of_the_file)
    value, _ = load(data, reader.names | more, reader.budget)   # its tensors are StoredTensor
    value["weight"].tensor()                                    # its bytes, touched only now
"""

from __future__ import annotations

import io
import math
import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fasttrain.system.errors import is_machine_fault
from fasttrain_data.pickle_data import (
    Budget,
    LongText,
    Named,
    Refused,
    load,
    new_table,
    shown,
)

__all__ = ["Storage", "StoredTensor", "TorchReader"]

MAGIC = 0x1950A86A20F9469CFC6C
VERSION = 1001
MAX_DIMENSIONS = 8
MAX_SIZE = 1 << 40
MAX_DIRECTORY = 8 << 20
"""Limit of a zip file's table of contents, in bytes."""

STORAGES: dict[str, Any] = {
    f"torch.{name}Storage": dtype
    for name, dtype in (
        ("Float", torch.float32),
        ("Double", torch.float64),
        ("Half", torch.float16),
        ("BFloat16", torch.bfloat16),
        ("Long", torch.int64),
        ("Int", torch.int32),
        ("Short", torch.int16),
        ("Char", torch.int8),
        ("Byte", torch.uint8),
        ("Bool", torch.bool),
    )
}


@dataclass(eq=False)
class Storage:
    """A row of numbers in a file."""

    dtype: torch.dtype
    count: int
    data: memoryview | None = None

    @property
    def size(self) -> int:
        """Size in bytes."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True, eq=False)
class StoredTensor:
    """A tensor that has not been read yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    budget: Budget

    @property
    def dtype(self) -> torch.dtype:
        return self.storage.dtype

    def tensor(self) -> Tensor:
        """A copy on the CPU. Raises Refused when the file has no bytes for it, or when all copies
        together would be larger than the file."""
        if self.storage.data is None:
            raise Refused("it leaves out a storage that it refers to")
        item = self.dtype.itemsize
        count = math.prod(self.shape)
        self.budget.copy(count * item)
        source = self.storage.data[self.offset * item : (self.offset + count) * item]
        # The file's bytes are not aligned; torch's memory is.
        copy = torch.empty(count * item, dtype=torch.uint8)
        copy.numpy()[:] = np.asarray(source)
        return copy.view(self.dtype).as_strided(self.shape, self.strides)


class TorchReader:
    """Shared by the pickles of one file: the names they may use, the storages, the budget."""

    def __init__(self, size: int) -> None:
        self.budget = Budget(2 * size)
        self.storages: dict[str, Storage] = {}
        self.names: dict[str, Any] = STORAGES | {
            "torch.storage._load_from_bytes": self._storage_alone,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
            "collections.OrderedDict": new_table,
            "_codecs.encode": self._encode,
        }

    def read_zip(self, path: Path, data: memoryview, names: dict[str, Any]) -> Any:
        """The object in a zip file of `torch.save`, whose bytes are `data`."""
        records = _records(path, data)
        main = [name for name in records if name.endswith("/data.pkl")]
        if len(main) != 1:
            raise Refused("it is a zip file, but not of torch.save: it has no data.pkl")
        folder = main[0].removesuffix("data.pkl")
        order = records.get(folder + "byteorder")
        if order is not None and bytes(order[:6]) != b"little":
            raise Refused("it was written by a big-endian machine")
        value, _ = load(records[main[0]], self.names | names, self.budget, self._storage_of)
        for key, storage in self.storages.items():
            record = records.get(f"{folder}data/{key}")
            if record is None or len(record) < storage.size:
                raise Refused(f"its storage {shown(key)} is missing or cut short")
            storage.data = record[: storage.size]
        return value

    def read_legacy(self, data: memoryview, names: dict[str, Any]) -> Any:
        """The object in a file of `torch.save` from before its zip format."""
        for expected in (MAGIC, VERSION):
            found, data = self._next(data, {})
            if type(found) is not int or found != expected:
                raise Refused("it holds no tensors in the format of torch.save")
        system, data = self._next(data, {})
        if type(system) is not dict or system.get("little_endian") is not True:
            raise Refused("it was written by a big-endian machine")
        value, end = load(data, self.names | names, self.budget, self._storage_of)
        keys, data = self._next(data[end:], {})
        if type(keys) is not list or any(type(key) is not str for key in keys):
            raise Refused("its list of storages is damaged")
        for key in keys:
            data = self._fill(self.storages.get(key), data)
        return value

    def _next(self, data: memoryview, names: dict[str, Any]) -> tuple[Any, memoryview]:
        value, end = load(data, names, self.budget)
        return value, data[end:]

    def _fill(self, storage: Storage | None, data: memoryview) -> memoryview:
        """Attach a storage's bytes, a count and the numbers; returns the rest."""
        if storage is None or storage.data is not None:
            raise Refused("its list of storages is damaged")
        if len(data) < 8 + storage.size or struct.unpack("<q", data[:8])[0] != storage.count:
            raise Refused("a storage is cut short or damaged")
        storage.data = data[8 : 8 + storage.size]
        return data[8 + storage.size :]

    def _storage_of(self, found: Any) -> Storage:
        """Of a persistent id: ("storage", type, key, location, numbers), and None in old files."""
        if type(found) is not tuple or len(found) not in (5, 6) or any(found[5:]):
            raise Refused("it refers to something that is not a storage")
        kind, named, key, _, count = found[:5]
        if kind != "storage" or type(named) is not Named or type(key) is not str:
            raise Refused("it refers to something that is not a storage")
        if not isinstance(named.meaning, torch.dtype) or not _is_size(count):
            raise Refused("it has a storage of no known type or size")
        storage = self.storages.setdefault(key, Storage(named.meaning, count))
        if (storage.dtype, storage.count) != (named.meaning, count):
            raise Refused(f"it describes its storage {shown(key)} in two ways")
        return storage

    def _storage_alone(self, data: Any) -> Storage:
        """Storage from its bytes in a plain pickle, which has no other name for it."""
        if type(data) is not memoryview:
            raise Refused("it has a storage that is not bytes")
        inner = TorchReader(0)
        inner.budget, inner.names = self.budget, STORAGES
        storage = inner.read_legacy(data, {})
        if type(storage) is not Storage or storage.data is None:
            raise Refused("it has a storage that is damaged")
        return storage

    def _tensor(
        self,
        storage: Any,
        offset: Any,
        shape: Any,
        strides: Any,
        requires_grad: Any,
        hooks: Any,
        metadata: Any = None,
    ) -> StoredTensor:
        if type(storage) is not Storage or metadata:
            raise Refused("it has a tensor of an unknown kind")
        if type(shape) is not tuple or type(strides) is not tuple or len(shape) != len(strides):
            raise Refused("it has a tensor without a shape")
        if len(shape) > MAX_DIMENSIONS or not all(map(_is_size, (offset, *shape, *strides))):
            raise Refused("it has a tensor without a shape")
        if math.prod(size for size in shape if size) >= MAX_SIZE:  # also for an empty one
            raise Refused(f"it has a tensor of the shape {shape}, which none has")
        if not _dense(shape, strides):
            raise Refused(f"it has a tensor that does not use each number once: strides {strides}")
        if offset + math.prod(shape) > storage.count:
            raise Refused(f"it has a tensor of shape {shape} that is larger than its storage")
        return StoredTensor(storage, offset, shape, strides, self.budget)

    def _parameter(self, data: Any, requires_grad: Any, hooks: Any) -> StoredTensor:
        if type(data) is not StoredTensor:
            raise Refused("it has a parameter that is not a tensor")
        return data

    def _encode(self, text: Any, encoding: Any) -> memoryview:
        """Bytes in the format of protocols up to 2: text with a character for each byte."""
        if encoding != "latin1" or type(text) not in (str, LongText):
            raise Refused("it encodes something that is not bytes")
        data = text.data if type(text) is LongText else memoryview(text.encode())
        self.budget.copy(len(data))
        if len(data) and np.frombuffer(data, np.uint8).max() > 0xC3:  # above U+00FF
            raise Refused("it encodes text that is not bytes")
        return memoryview(str(data, "utf-8").encode("latin1"))


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < MAX_SIZE


def _dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether a view covers each number of a row exactly once."""
    expected = 1
    for stride, size in sorted(zip(strides, shape, strict=True)):
        if size != 1 and stride != expected:
            return 0 in shape
        expected *= size
    return True


class _Bounded(io.FileIO):
    """A file with a limit on single reads: the zip library reads the table of contents, which may
    claim to be the whole file, at once."""

    def read(self, size: int | None = -1, /) -> bytes:
        most = MAX_DIRECTORY + 1
        data = super().read(most if size is None or size < 0 else min(size, most))
        if len(data) == most:
            raise Refused("its table of contents is larger than that of any model")
        return data


def _records(path: Path, data: memoryview) -> dict[str, memoryview]:
    """The records of a zip file, none of them compressed, as views of its bytes."""
    try:
        with _Bounded(path) as file:
            entries = zipfile.ZipFile(file).infolist()
    except Refused:
        raise
    except (zipfile.BadZipFile, NotImplementedError, OSError, ValueError, struct.error) as error:
        if is_machine_fault(error):
            raise
        raise Refused(f"it is a damaged zip file: {shown(str(error))}") from None
    records: dict[str, memoryview] = {}
    total = 0
    for entry in entries:
        name, at = shown(entry.filename), entry.header_offset
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused(f"its record {name} is compressed or encrypted")
        header = data[at : at + 30] if at >= 0 else data[:0]
        if len(header) < 30 or bytes(header[:4]) != b"PK\3\4" or entry.filename in records:
            raise Refused(f"its record {name} is damaged")
        start = at + 30 + sum(struct.unpack("<HH", header[26:30]))
        total += entry.file_size  # overlapping records count repeatedly
        if max(start + entry.file_size, total) > len(data):
            raise Refused(f"its record {name} is cut short")
        record = data[start : start + entry.file_size]
        if zlib.crc32(record) != entry.CRC:
            raise Refused(f"its record {name} is damaged: its checksum differs")
        records[entry.filename] = record
    return records
