"""Saved positions of all processes' streams.

cursor = merged(world.gather(stream.state_dict()))
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["fresh_order", "merged"]


def fresh_order(cursor: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A merged cursor for the same data in another order: all streams start the epoch that none of
    them has started."""
    epoch = 1 + max(place["epoch"] for place in cursor["streams"].values())
    streams = {
        name: {**place, "epoch": epoch, "position": 0} for name, place in cursor["streams"].items()
    }
    return {**cursor, "seed": seed, "streams": streams}


def merged(cursors: list[dict[str, Any]]) -> dict[str, Any]:
    """One cursor with the streams of all ranks."""
    streams = {k: v for cursor in cursors for k, v in cursor["streams"].items()}
    return {**cursors[0], "streams": streams}
