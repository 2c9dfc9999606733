"""Two tables in MATLAB's format that publishers of images still write: ImageNet's `meta.mat` and
Oxford's `imagelabels.mat`.

SciPy reads them, in a process of its own with bounds on memory: a kilobyte can ask for terabytes.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, TypeVar

from fasttrain_data.errors import DataError
from fasttrain_data.pool import apart, bound

__all__ = ["flower_labels", "ilsvrc_classes"]

MAX_MEMORY = 1 << 30
ILSVRC_CLASSES = 1000
T = TypeVar("T")


def flower_labels(data: bytes, where: str) -> dict[str, str | int]:
    """Class number by the number of an image, both from 1: class 1 becomes 0. Raises DataError."""
    return _table(data, where, "labels", _flowers)


def _flowers(table: Any) -> dict[str, str | int]:
    values = [int(value) for value in table.reshape(-1)]
    if not values or min(values) < 1:
        raise ValueError("labels below 1")
    return {str(number): value - 1 for number, value in enumerate(values, 1)}


def ilsvrc_classes(data: bytes, where: str) -> dict[int, str]:
    """WordNet name by ImageNet's number, 1 to 1,000. Raises DataError."""
    return _table(data, f"meta.mat beside {where}", "synsets", _synsets)


def _synsets(table: Any) -> dict[int, str]:
    rows = ((int(row["ILSVRC2012_ID"]), str(row["WNID"])) for row in table.reshape(-1))
    return {number: name for number, name in rows if 1 <= number <= ILSVRC_CLASSES}


def _table(data: bytes, where: str, name: str, take: Callable[[Any], T]) -> T:
    def work() -> T:
        bound(memory=MAX_MEMORY)
        try:
            from scipy.io import loadmat

            return take(loadmat(io.BytesIO(data), squeeze_me=True, variable_names=[name])[name])
        except ImportError as error:
            raise DataError(f"{where} needs SciPy: pip install scipy") from error
        except Exception as error:  # SciPy raises many types on damaged files
            raise DataError(f"{where} is not a MATLAB file with a table `{name}`") from error

    return apart(work, f"reading {where}")
