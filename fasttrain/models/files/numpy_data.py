"""NumPy's values in a pickle, as plain data: numbers, and short arrays of them.

load(data, NUMPY_NAMES, budget)
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from fasttrain_data.pickle_data import Named, Refused

__all__ = ["NUMPY_NAMES", "Array"]

MAX_ARRAY = 10_000
"""Numbers of an array; networks have torch's tensors."""


@dataclass(eq=False)
class Dtype:
    """A NumPy dtype of numbers."""

    code: str

    def set_state(self, state: Any) -> None:
        if type(state) is not tuple or len(state) < 2 or state[1] not in ("<", "|", "="):
            raise Refused("it has numbers of another byte order")


NUMBERS = {"b1": "?", "i4": "i", "i8": "q", "f4": "f", "f8": "d"}
"""NumPy's type codes -> struct's."""


def _dtype(code: Any, align: Any = False, copy: Any = False) -> Dtype:
    if type(code) is not str or code not in NUMBERS:
        raise Refused("it has NumPy values that are not numbers")
    return Dtype(code)


def _scalar(dtype: Any, data: Any) -> Any:
    """A NumPy number as a Python one."""
    if type(dtype) is not Dtype or type(data) is not memoryview:
        raise Refused("it has NumPy values that are not numbers")
    return struct.unpack(f"<{NUMBERS[dtype.code]}", data)[0]


@dataclass(eq=False)
class Array:
    """A short row of numbers of NumPy's."""

    values: tuple[float, ...] = ()

    def set_state(self, state: Any) -> None:
        if type(state) is not tuple or len(state) != 5:
            raise Refused("it has a NumPy array of an unknown kind")
        _, shape, dtype, _, data = state
        sizes = type(shape) is tuple and all(type(n) is int and 0 <= n <= MAX_ARRAY for n in shape)
        if not sizes or type(dtype) is not Dtype or type(data) is not memoryview:
            raise Refused("it has a NumPy array of an unknown kind")
        count = math.prod(shape)
        if count > MAX_ARRAY or len(data) != count * struct.calcsize(NUMBERS[dtype.code]):
            raise Refused("it has a NumPy array that is long or cut short")
        self.values = struct.unpack(f"<{count}{NUMBERS[dtype.code]}", data)


def _array(kind: Any, shape: Any, code: Any) -> Array:
    """`numpy.core.multiarray._reconstruct`: an empty array, that its state fills."""
    if type(kind) is not Named or kind.name != "numpy.ndarray":
        raise Refused("it has a NumPy array of an unknown kind")
    return Array()


NUMPY_NAMES: dict[str, Any] = {
    "numpy.dtype": _dtype,
    "numpy.ndarray": None,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "numpy.core.multiarray._reconstruct": _array,
    "numpy._core.multiarray._reconstruct": _array,
}
"""Both of NumPy's own places. What stands for None can be no more than a name."""
