"""Reports of a run as the lines of a table that fits a terminal.

columns = Columns(width=80)
for line in columns.lines(6400, 48.7, {"loss/generator": 0.71, "fd": 281.0}):
    print(line)

A metric `group/name` has two lines of heading. Where not all fit, losses come first, then logits;
`stats.jsonl` has them all. What a report rarely has, an evaluation or skipped steps, gets a line of
its own.
"""

from __future__ import annotations

from collections.abc import Mapping

__all__ = ["Columns"]

WIDTH, GAP = 9, 2
"""Characters of a column, and between two."""

FIRST = 10
"""Characters of the column of images."""

AGAIN = 20
"""Lines after which the heading is repeated."""

GROUPS = ("loss", "logits", "gradient", "data")
"""Groups of metrics that are columns, in the order in which they get one."""


class Columns:
    """The table so far: its metrics, and the lines since the last heading."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.fit = max((width - FIRST) // (WIDTH + GAP) - 1, 1)
        self.names: list[str] = []
        self.since = AGAIN

    def lines(self, images: int, seconds: float, values: Mapping[str, float]) -> list[str]:
        """The line of a report, after a heading where the last one is far up or of other metrics,
        and one of what has no column."""
        ranked = sorted((n for n in values if _group(n) in GROUPS), key=_rank)[: self.fit]
        if not set(ranked) <= set(self.names):
            self.names, self.since = ranked, AGAIN
        heading = self._heading() if self.since >= AGAIN else []
        self.since = 1 if heading else self.since + 1
        cells = [f"{values[name]:.4g}" if name in values else "" for name in self.names]
        rare = [f"{n} {value:.4g}" for n, value in values.items() if _group(n) not in GROUPS]
        below = [f"{' ' * (FIRST + GAP)}{'  '.join(rare)}"[: self.width]] if rare else []
        return [*heading, _row(f"{images:,}", [f"{seconds:,.0f}", *cells]), *below]

    def _heading(self) -> list[str]:
        groups = [_cut(_group(name)) for name in self.names]
        names = [_cut(name.partition("/")[2]) for name in self.names]
        return [_row("", ["", *groups]), _row("images", ["seconds", *names])]


def _group(name: str) -> str:
    group, slash, _ = name.partition("/")
    return group if slash else ""


def _rank(name: str) -> tuple[int, str]:
    return GROUPS.index(_group(name)), name


def _row(first: str, cells: list[str]) -> str:
    return (f"{first:>{FIRST}}" + "".join(f"{cell:>{WIDTH + GAP}}" for cell in cells)).rstrip()


def _cut(word: str) -> str:
    return word if len(word) <= WIDTH else f"{word[: WIDTH - 1]}."
