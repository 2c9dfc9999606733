"""A shard set for the terminal: in one line, and in two tables."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table

from fasttrain_data.errors import shown
from fasttrain_data.index import Index

__all__ = ["first_of", "summary", "tables"]

NAMED = 5
"""Classes that are named in a line."""


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
