"""A shard set for the terminal: in one line, and in two tables."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from rich.table import Table

from fasttrain_data.errors import shown
from fasttrain_data.index import Index

__all__ = ["first_of", "left_out", "passed_over", "summary", "tables"]

NAMED = 5
"""Classes that are named in a line."""
ENDINGS = 20
"""Endings of files that are named in a line."""


def summary(index: Index, *, classes: bool = False) -> str:
    """What a set is in a line; with the first classes, which show most mistakes with labels."""
    number, names = len(index.classes), ""
    if classes:
        first = ", ".join(f"{info.name} {info.images:,}" for info in index.classes[:NAMED])
        names = f" ({shown(first)}{', ...' if number > NAMED else ''})"
    kind = "images" if index.latents is None else "latents"
    return (
        f"{index.images:,} {kind} of {index.resolution}x{index.resolution}x{index.channels} "
        f"in {number} class{'' if number == 1 else 'es'}{names}, {len(index.shards)} "
        f"shard{'' if len(index.shards) == 1 else 's'}, {index.bytes:,} bytes"
    )


def first_of(names: Sequence[str]) -> list[str]:
    """What was done with animations and files of several pages, if there were any."""
    if not names:
        return []
    files = "1 file has" if len(names) == 1 else f"{len(names):,} files have"
    return [f"{files} several pictures, {min(names)} for one: the first of each is taken"]


def left_out(files: Iterable[tuple[str, str]]) -> str:
    """How many files could not be read, each with its reason, and how many of each reason."""
    counts = Counter(reason for _, reason in files)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    return f"left out: {counts.total()}" + (f" ({reasons})" if reasons else "")


def passed_over(endings: Mapping[str, int]) -> list[str]:
    """How many files are no images by their names, of each ending, if there were any."""
    if not endings:
        return []
    most = sorted(endings.items(), key=lambda row: (-row[1], row[0]))[:ENDINGS]
    names = ", ".join(f"{count} {shown(ending)}" for ending, count in most)
    return [f"passed over, no images by name: {sum(endings.values())} ({names})"]


def tables(index: Index) -> tuple[Table, Table]:
    """What the index says: of the set, and of each class."""
    table = Table(show_header=False, box=None)
    for name, value in (
        ("images", f"{index.images:,}"),
        ("size", f"{index.resolution}x{index.resolution}, {index.channels} channels"),
        ("stored as", index.record),
        ("shards", f"{len(index.shards):,}, {index.bytes:,} bytes"),
        ("content", index.content_sha256),
        ("source", ", ".join(f"{key} {value}" for key, value in index.source.items())),
        ("options", _shown_options(index)),
        ("left out", str(sum(index.skipped.values()))),
    ):
        table.add_row(name, shown(value))
    classes = Table("label", "class", "images", box=None)
    for label, row in enumerate(index.classes):
        classes.add_row(str(label), row.name, f"{row.images:,}")
    return table, classes


def _shown_options(index: Index) -> str:
    given = {key: value for key, value in index.options.items() if value is not None}
    given.pop("class_names", None)  # the table of classes has them
    return ", ".join(f"{key} {value}" for key, value in given.items())
