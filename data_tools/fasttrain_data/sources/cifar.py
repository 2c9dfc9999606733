"""CIFAR-10 and CIFAR-100, the python and the binary versions, packed or not.

    source = CifarSource(open_files(Path("cifar-10-python.tar.gz")), Selection(split="test"))

The python versions are pickles, of which nothing is run (`pickled.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError, shown
from fasttrain_data.sources.batches import BatchSource, Files, open_files
from fasttrain_data.sources.pickled import load_table, texts
from fasttrain_data.sources.place import Place
from fasttrain_data.sources.selection import NO_LABELS, Selection

__all__ = ["CifarSource"]

PIXELS = 3 * 32 * 32
_TRAIN = tuple(f"data_batch_{number}" for number in range(1, 6))


class _Version(NamedTuple):
    """One of the four: its files and, of each kind of label, the field and the names' field."""

    name: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    labels: dict[str, str]
    meta: str = ""

    @property
    def title(self) -> str:
        return f"CIFAR-{10 if len(self.labels) == 1 else 100}"


# In the binary versions a record begins with a byte for each kind of label, in this order.
_HUNDRED = {"coarse_labels": "coarse_label_names", "fine_labels": "fine_label_names"}
_VERSIONS = (
    _Version("cifar10", _TRAIN, ("test_batch",), {"labels": "label_names"}, "batches.meta"),
    _Version("cifar100", ("train",), ("test",), _HUNDRED, "meta"),
    _Version(
        "cifar10-binary",
        tuple(f"{name}.bin" for name in _TRAIN),
        ("test_batch.bin",),
        {"labels": "batches.meta.txt"},
    ),
    _Version(
        "cifar100-binary",
        ("train.bin",),
        ("test.bin",),
        {kind: f"{names}.txt" for kind, names in _HUNDRED.items()},
    ),
)


class CifarSource(BatchSource):
    """Either set, python or binary version. CIFAR-100's labels are the fine ones unless
    `coarse_labels` is the label column."""

    shape = (32, 32, 3)

    options = frozenset({"split", "label_column"})

    @classmethod
    def opened(cls, place: Place) -> CifarSource | None:
        packed = place.gzipped and "cifar" in place.path.name.lower()
        if not packed and _version(place.files) is None:
            return None
        files = open_files(place.path)
        return cls(files, place.chosen) if _version(files.names) else None

    def __init__(self, files: Files, chosen: Selection) -> None:
        version = _version(files.names)
        if version is None:
            raise DataError(f"{files.title} holds none of CIFAR's versions")
        self.title = files.title
        split = chosen.split or "train"
        if split not in ("train", "test"):
            raise DataError(f"--split is {split}: {version.title} has train and test")
        kind = chosen.label_column or list(version.labels)[-1]
        if kind not in (NO_LABELS, *version.labels):
            raise DataError(
                f"--label-column is {shown(kind)}: {version.title} has "
                f"{', '.join(version.labels)}; or {NO_LABELS}"
            )
        wanted = version.train if split == "train" else version.test
        read = _pickled if version.meta else _binary
        try:
            batches, labels, self.classes = read(files, version, wanted, kind)
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{files.title} does not hold what {version.title}'s batches do"
            ) from error
        sound = bool(self.classes) and all(0 <= label < len(self.classes) for label in labels)
        if not sound:
            raise DataError(f"{files.title}: labels and images do not belong together")
        self._take(batches, np.asarray(labels, np.int64))
        self.identity = {
            "kind": version.name,
            "name": split,
            "files": len(wanted),
            "pixels_sha256": self.pixels_hash(),
        }


Content = tuple[list[npt.NDArray[np.uint8]], list[int], list[str]]


def _version(names: frozenset[str]) -> _Version | None:
    for version in _VERSIONS:
        wanted = {version.meta or version.test[0]}
        if wanted | ({"train", "test"} if version.meta == "meta" else set()) <= names:
            return version
    return None


def _pickled(files: Files, version: _Version, wanted: tuple[str, ...], kind: str) -> Content:
    def load(name: str) -> dict[str, Any]:
        where = f"{files.title}/{name}"
        return load_table(files.read(name), where, f"{version.title}'s batches")

    batches, labels = [], []
    for name in wanted:
        batch = load(name)
        batches.append(batch["data"].rows(PIXELS))
        labels += [0] * len(batches[-1]) if kind == NO_LABELS else _numbers(batch[kind])
    meta = load(version.meta)
    names = ["images"] if kind == NO_LABELS else texts(meta[version.labels[kind]])
    return batches, labels, names


def _numbers(values: Any) -> list[int]:
    if type(values) is not list or not all(type(value) is int for value in values):
        raise TypeError("not a list of numbers")
    return values


def _binary(files: Files, version: _Version, wanted: tuple[str, ...], kind: str) -> Content:
    width = len(version.labels) + PIXELS
    batches: list[npt.NDArray[np.uint8]] = []
    labels: list[int] = []
    for name in wanted:
        data = files.read(name)
        if not len(data) or len(data) % width:
            raise DataError(
                f"{files.title}/{name} is cut short: {len(data)} bytes, not {width} each"
            )
        rows = np.frombuffer(data, np.uint8).reshape(-1, width)
        batches.append(rows[:, len(version.labels) :])
        place = list(version.labels).index(kind) if kind != NO_LABELS else 0
        labels += [0] * len(rows) if kind == NO_LABELS else rows[:, place].tolist()
    names = ["images"] if kind == NO_LABELS else list(_lines(files, version.labels[kind]))
    return batches, labels, names


def _lines(files: Files, name: str) -> Iterator[str]:
    for line in str(files.read(name), "utf-8").splitlines():
        if line.strip():
            yield line.strip()
