"""A shard set in one line, for the terminal."""

from __future__ import annotations

from fasttrain_data.errors import shown
from fasttrain_data.index import Index

__all__ = ["summary"]

NAMED = 5
"""Classes that are named in a line."""


def summary(index: Index, *, classes: bool = False) -> str:
    """What a set is in a line; with the first classes, which show most mistakes with labels."""
    number, names = len(index.classes), ""
    if classes:
        first = ", ".join(f"{info.name} {info.images:,}" for info in index.classes[:NAMED])
        names = f" ({shown(first)}{', ...' if number > NAMED else ''})"
    return (
        f"{index.images:,} images of {index.resolution}x{index.resolution}x{index.channels} "
        f"in {number} class{'' if number == 1 else 'es'}{names}, {len(index.shards)} "
        f"shard{'' if len(index.shards) == 1 else 's'}, {index.bytes:,} bytes"
    )
