"""Values over several seeds: their middle and spread, and where a curve first reaches a level.

spread([41.0, 38.0, 50.0])                 # Spread(mean=43.0, low=38.0, high=50.0, seeds=3)
apart(spread(a), spread(b))                # whether all of a are below all of b, or the reverse
first_below([(1000, 80.0), (2000, 43.0)], 44.1)        # 2000
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["Spread", "apart", "first_below", "spread"]


class Spread(NamedTuple):
    """Mean and range of the values of several seeds."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def text(self) -> str:
        """`43.0 (38.0 to 50.0)`, or the value of one seed."""
        if self.seeds == 1:
            return f"{self.mean:.1f}"
        return f"{self.mean:.1f} ({self.low:.1f} to {self.high:.1f})"


def spread(values: Sequence[float]) -> Spread:
    """Raises ValueError without values."""
    if not values:
        raise ValueError("no values")
    return Spread(sum(values) / len(values), min(values), max(values), len(values))


def apart(one: Spread, other: Spread) -> bool:
    """Whether the ranges do not overlap. One seed has no range: rounding alone has moved a result
    from 410 to 233, between two CPUs."""
    if min(one.seeds, other.seeds) == 1:
        return False
    return one.high < other.low or other.high < one.low


def first_below(curve: Sequence[tuple[int, float]], level: float) -> int | None:
    """Images at which a curve of (images, value) is first at or below a level; None: never."""
    return next((images for images, value in curve if value <= level), None)
