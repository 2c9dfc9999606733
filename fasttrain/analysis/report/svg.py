"""Line charts as inline SVG, without a plotting library and without scripts.

    chart = Chart("losses", "Losses", 64, [Series("generator", "after", [(0, 1.2), (64, 0.9)])])
    chart.svg                                   # markup for an HTML page, `chart.keys` its legend

Colours are the page's: a series of colour `after` is drawn in the CSS variable `--after`, so a
chart follows the page's light, dark and print themes. All text is escaped.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

__all__ = ["Chart", "Level", "Scale", "Series", "compact", "thin"]

Point = tuple[float, float]

WIDTH, HEIGHT = 440, 240
LEFT, RIGHT, TOP, BOTTOM = 48, 14, 10, 38
LOG_FROM = 30.0
"""Positive values that span more than this factor get a log axis."""
MOST_POINTS = 400
"""Lines with more points are averaged over neighbours; a chart has fewer pixels than that."""


@dataclass(frozen=True)
class Scale:
    """A linear or logarithmic axis from `low` to `high`."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def fit(cls, values: Iterable[float], *, zero: bool = False, log: bool | None = None) -> Scale:
        """An axis that contains all the values with a margin.

        zero: include 0, and start there when nothing is negative. log: None chooses a log axis for
        positive values that span a large factor.
        """
        low, high = min(finite := [*values, *([0.0] if zero else [])]), max(finite)
        if log is None:
            log = not zero and low > 0 and high / low > LOG_FROM
        if log:
            air = (high / low) ** 0.06 if high > low else 1.5
            return cls(low / air, high * air, log=True)
        air = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
        return cls(0.0 if zero and low == 0 else low - air, high + air)

    def at(self, value: float) -> float:
        """Position of the value: 0 at `low`, 1 at `high`, clamped to these."""
        if self.log:
            value = max(value, self.low)
            share = math.log(value / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))

    def ticks(self, count: int = 5) -> list[float]:
        """Round values on the axis, about `count` of them."""
        if self.log:
            found = self._log_ticks(count)
            if len(found) > 1:
                return found
        rough = (self.high - self.low) / count
        unit = 10.0 ** math.floor(math.log10(rough))
        step = unit * next(m for m in (1, 2, 5, 10) if rough <= m * unit * (1 + 1e-9))
        first, last = math.ceil(self.low / step - 1e-9), math.floor(self.high / step + 1e-9)
        return [i * step for i in range(first, last + 1)]

    def _log_ticks(self, count: int) -> list[float]:
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for multiples in ((1, 2, 5), (1, 3), (1,)):
            found = [m * 10.0**d for d in decades for m in multiples]
            inside = [tick for tick in found if self.low <= tick <= self.high]
            if len(inside) <= count + 2:
                return inside
        return inside[:: math.ceil(len(inside) / count)]


@dataclass(frozen=True)
class Series:
    """One line: its name, its colour (a CSS variable of the page), (x, y) pairs in order of x.

    marked: draw the points too, for values measured now and then.
    """

    label: str
    colour: str
    points: Sequence[Point]
    marked: bool = False


@dataclass(frozen=True)
class Level:
    """A dashed horizontal line to compare with."""

    label: str
    colour: str
    value: float


@dataclass(frozen=True)
class Chart:
    """A line chart.

    name: a word, different for each chart of a page. end: where the horizontal axis ends; charts
    with the same end can be compared. zero: begin the vertical axis at 0. across: what the
    horizontal axis counts.
    """

    name: str
    title: str
    end: float
    series: Sequence[Series]
    levels: Sequence[Level] = ()
    zero: bool = False
    across: str = "images seen"

    @property
    def x(self) -> Scale:
        return Scale(0.0, max(self.end, 1.0))

    @property
    def y(self) -> Scale:
        measured = [y for line in self.series for _, y in line.points]
        return Scale.fit([*measured, *(level.value for level in self.levels)], zero=self.zero)

    @property
    def keys(self) -> list[tuple[str, str, bool]]:
        """The legend: (label, colour, dashed)."""
        lines = [(line.label, line.colour, False) for line in self.series]
        return lines + [
            (f"{level.label}: {compact(level.value)}", level.colour, True) for level in self.levels
        ]

    @property
    def summary(self) -> str:
        """Description for readers who cannot see the picture."""
        told = []
        for line in self.series:
            (_, first), (end, last) = line.points[0], line.points[-1]
            course = f"{compact(first)} to {compact(last)} at {compact(end)} {self.across}"
            told.append(f"{line.label}: {course}")
        told += [f"{level.label}: {compact(level.value)}" for level in self.levels]
        return "; ".join(told)

    @property
    def svg(self) -> Markup:
        """The chart as an `<svg>` element that fills the available width."""
        x, y = self.x, self.y
        parts = [*_grid(x, y, self.across)]
        parts += [_level(level, y) for level in self.levels]
        parts += [_line(line, x, y, self.across) for line in self.series]
        return Markup(
            '<svg viewBox="0 0 {w} {h}" role="img" aria-labelledby="{n}-title {n}-desc">'
            '<title id="{n}-title">{title}</title><desc id="{n}-desc">{desc}</desc>{body}</svg>'
        ).format(
            w=WIDTH,
            h=HEIGHT,
            n=self.name,
            title=self.title + (", log scale" if y.log else ""),
            desc=self.summary,
            body=Markup("").join(parts),
        )


def thin(points: Sequence[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most `most` points: means of equally many neighbours. Values that are not finite are
    dropped."""
    kept = [(x, y) for x, y in points if math.isfinite(x) and math.isfinite(y)]
    size = math.ceil(len(kept) / most)
    if size <= 1:
        return kept
    runs = (kept[start : start + size] for start in range(0, len(kept), size))
    return [(sum(x for x, _ in r) / len(r), sum(y for _, y in r) / len(r)) for r in runs]


def compact(value: float) -> str:
    """A number in few characters: 0.0123, 24.5, 266, 6k, 1.2M."""
    for unit, suffix in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= unit * (1 - 5e-4):
            return f"{value / unit:.3g}{suffix}"
    return f"{value:.3g}"


def _px(x: Scale, value: float) -> float:
    return round(LEFT + x.at(value) * (WIDTH - LEFT - RIGHT), 1)


def _py(y: Scale, value: float) -> float:
    return round(HEIGHT - BOTTOM - y.at(value) * (HEIGHT - TOP - BOTTOM), 1)


def _grid(x: Scale, y: Scale, unit: str) -> list[Markup]:
    bottom = HEIGHT - BOTTOM
    across = Markup(
        '<line class="grid" x1="{x1}" x2="{x2}" y1="{y}" y2="{y}"/>'
        '<text x="{text}" y="{y}" dy="0.35em" text-anchor="end">{label}</text>'
    )
    down = Markup(
        '<line class="axis" x1="{x}" x2="{x}" y1="{y1}" y2="{y2}"/>'
        '<text x="{x}" y="{text}" text-anchor="middle">{label}</text>'
    )
    parts = [
        across.format(x1=LEFT, x2=WIDTH - RIGHT, y=_py(y, tick), text=LEFT - 7, label=compact(tick))
        for tick in y.ticks()
    ]
    parts += [
        down.format(x=_px(x, tick), y1=bottom, y2=bottom + 4, text=bottom + 16, label=compact(tick))
        for tick in x.ticks()
    ]
    parts.append(
        Markup(
            '<line class="axis" x1="{x1}" x2="{x2}" y1="{y}" y2="{y}"/>'
            '<text class="unit" x="{x2}" y="{text}" text-anchor="end">{unit}</text>'
        ).format(x1=LEFT, x2=WIDTH - RIGHT, y=bottom, text=HEIGHT - 4, unit=unit)
    )
    return parts


def _level(level: Level, y: Scale) -> Markup:
    return Markup(
        '<line class="level" style="stroke:var(--{colour})" x1="{x1}" x2="{x2}" '
        'y1="{y}" y2="{y}"><title>{label} {value}</title></line>'
    ).format(
        colour=level.colour,
        x1=LEFT,
        x2=WIDTH - RIGHT,
        y=_py(y, level.value),
        label=level.label,
        value=compact(level.value),
    )


def _line(line: Series, x: Scale, y: Scale, unit: str) -> Markup:
    path = " ".join(f"{_px(x, px)},{_py(y, py)}" for px, py in line.points)
    drawn = Markup('<polyline class="line" style="stroke:var(--{})" points="{}"/>').format(
        line.colour, path
    )
    # A single point has no visible line.
    marked = line.points if line.marked or len(line.points) == 1 else ()
    dot = Markup(
        '<circle style="fill:var(--{colour})" cx="{x}" cy="{y}" r="3.5">'
        "<title>{label} {value} at {at} {unit}</title></circle>"
    )
    return drawn + Markup("").join(
        dot.format(
            colour=line.colour,
            x=_px(x, px),
            y=_py(y, py),
            label=line.label,
            value=compact(py),
            at=f"{px:,.0f}" if px == int(px) else compact(px),
            unit=unit,
        )
        for px, py in marked
    )
