"""Bilinear interpolation along one axis, for the kernels that resample by it.

Output o lies at s = max(ratio o + offset, 0) of `size` inputs, between input i = floor(s) and the
next: it is (1 - w) x[i] + w x[i + 1], w = s - i, and the last input counts for its missing
neighbour. That is torch's `interpolate`: with corners aligned ratio = (size - 1) / (outputs - 1)
and offset 0; otherwise ratio = size / outputs and offset = (ratio - 1) / 2.
"""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

import math
from typing import NamedTuple

from fasttrain_kernels.dispatch import tl, triton

__all__ = ["Axis", "between", "share"]


class Axis(NamedTuple):
    """One axis of an interpolation: inputs, outputs, and where the outputs lie."""

    size: int
    outputs: int
    ratio: float
    offset: float

    @classmethod
    def of(cls, size: int, outputs: int, *, align_corners: bool) -> Axis:
        if align_corners:
            return cls(size, outputs, (size - 1) / max(1, outputs - 1), 0.0)
        ratio = size / outputs
        return cls(size, outputs, ratio, (ratio - 1) / 2)

    @property
    def inverse(self) -> float:
        """Outputs an input; 0 where all outputs lie on one input."""
        return 1 / self.ratio if self.ratio else 0.0

    @property
    def reach(self) -> int:
        """Outputs that one input may be part of, counted from the first of them on; one or two are
        more than there are."""
        return math.ceil(2 * self.inverse) + 2 if self.ratio else self.outputs


@triton.jit
def between(o, ratio, offset, SIZE: tl.constexpr):
    """The two inputs of output o, and the second one's weight."""
    s = tl.maximum(o.to(tl.float32) * ratio + offset, 0.0)
    i = tl.minimum(s.to(tl.int32), SIZE - 1)
    return i, tl.minimum(i + 1, SIZE - 1), s - i.to(tl.float32)


@triton.jit
def first(i, ratio, offset, inverse):
    """An output before all those that input i is part of, by less than two."""
    return tl.floor((i - 1 - offset) * inverse).to(tl.int32)


@triton.jit
def share(o, i, ratio, offset, SIZE: tl.constexpr, OUTPUTS: tl.constexpr):
    """The weight of input i in output o; 0 for an o that does not exist."""
    low, high, w = between(o, ratio, offset, SIZE)
    weight = tl.where(low == i, 1.0 - w, 0.0) + tl.where(high == i, w, 0.0)
    return tl.where((o >= 0) & (o < OUTPUTS), weight, 0.0)
