"""Pickled dictionaries of arrays and lists, as CIFAR and the small ImageNets come: nothing that
they name is imported or run.

    table = load_table(memoryview(data), "data_batch_1", "CIFAR-10's batches")
    table["data"].rows(3072)        # uint8 [n, 3072]
"""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError
from fasttrain_data.pickle_data import Budget, LongText, Refused, load

__all__ = ["MAX_PICKLE_STEPS", "Stored", "load_table", "texts"]

MAX_PICKLE_STEPS = 1 << 19
"""CIFAR-100's training images take 200,000, with their names as Python 3 writes bytes 500,000."""


class Stored:
    """A pickled NumPy array, or the type of one: its shape and bytes, as they were stored."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def set_state(self, state: object) -> None:
        self.state = state

    @property
    def columns(self) -> int:
        """Of a matrix. Raises TypeError, ValueError."""
        _, columns = self.state[1]
        if type(columns) is not int:
            raise TypeError("not a matrix")
        return columns

    def rows(self, columns: int) -> npt.NDArray[np.uint8]:
        """uint8 [n, columns], a view. Raises TypeError, ValueError."""
        _, shape, kind, fortran, data = self.state
        if isinstance(data, str):  # short, of Python 2
            data = data.encode("latin1")
        pixels = np.frombuffer(data, np.uint8)
        rows, found = shape
        one_byte = not isinstance(kind, Stored) or kind.state is None or kind.state[1] == "|"
        if fortran or type(rows) is not int or found != columns or pixels.size != rows * columns:
            raise ValueError("not an array of these columns")
        if not one_byte:
            raise ValueError("not an array of bytes")
        return pixels.reshape(rows, columns)


def load_table(data: memoryview, name: str, kind: str) -> dict[str, Any]:
    """A pickled dictionary with texts as keys, of Python 2 or 3. Arrays are `Stored` and, where the
    pickle has their bytes as they are, views of `data`.

    Raises DataError: `name` is not one of `kind`.
    """
    budget = Budget(2 * len(data), MAX_PICKLE_STEPS)

    def encode(text: str | LongText, _: object) -> str | bytes:
        """Python 3 writes bytes as a text for Python 2, and the call that makes them again."""
        if isinstance(text, str):
            return text
        budget.copy(len(text.data))
        try:
            return str(text.data, "utf-8").encode("latin1")
        except UnicodeError:
            raise Refused("it has bytes that are none") from None

    names: dict[str, Any] = {
        "numpy.core.multiarray._reconstruct": Stored,
        "numpy._core.multiarray._reconstruct": Stored,
        "numpy.dtype": Stored,
        "numpy.ndarray": "ndarray",
        "_codecs.encode": encode,
    }
    try:
        table, _ = load(data, names, budget, more=_TEXTS)
        if type(table) is not dict or not all(type(key) is str for key in table):
            raise Refused("no dictionary of texts")
    except Refused as error:
        raise DataError(f"{name} is not one of {kind}: {error}") from None
    return table


def texts(values: Any) -> list[str]:
    """A list of names. Raises TypeError for another thing: of nested lists, `str` could ask for any
    memory."""
    if type(values) is not list or not all(type(value) is str for value in values):
        raise TypeError("not a list of names")
    return values


# Names and keys are short byte strings, of either Python; the longer ones are pixels.
_TEXTS = {
    pickle.SHORT_BINSTRING[0]: lambda m: m.push(str(m.take(m.number("<B")), "latin1")),
    pickle.SHORT_BINBYTES[0]: lambda m: m.push(str(m.take(m.number("<B")), "latin1")),
    pickle.BINSTRING[0]: lambda m: m.push(m.take(m.number("<I"))),
}
