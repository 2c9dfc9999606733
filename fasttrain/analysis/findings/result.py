"""The result of an experiment: plain data for JSON, and what the page shows of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

__all__ = ["Curve", "HeatMap", "Result", "Table"]


@dataclass(frozen=True)
class Curve:
    """Lines of one chart: name -> (x, y) pairs; across: what x counts."""

    title: str
    lines: dict[str, list[tuple[float, float]]]
    across: str = "images seen"


@dataclass(frozen=True)
class HeatMap:
    """Numbers by row and column, coloured from the lowest to the highest; None: no value."""

    title: str
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[float | None]]


@dataclass(frozen=True)
class Table:
    """Texts and numbers; the first column names the rows."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Result:
    """What was measured, how, and what was found.

    Attributes:
        name: of the experiment. claim: of the paper. found: one sentence, whether it agrees or not.
        protocol: how it was measured, in sentences; about: the same as values.
        data: every number.
    """

    name: str
    title: str
    claim: str
    found: str
    protocol: str
    about: dict[str, Any]
    data: dict[str, Any]
    tables: Sequence[Table] = ()
    curves: Sequence[Curve] = ()
    maps: Sequence[HeatMap] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Result:
        """Raises TypeError or KeyError for other values."""
        parts = {
            "tables": tuple(Table(**item) for item in values["tables"]),
            "curves": tuple(Curve(**item) for item in values["curves"]),
            "maps": tuple(HeatMap(**item) for item in values["maps"]),
        }
        return cls(**{**values, **parts})
