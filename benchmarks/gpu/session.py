"""The parts of the benchmark in order of value, each with seconds of its own, and what a second
call finds done.

A machine that is lent for a quarter of an hour ends some call in the middle: the result file is
rewritten after every part and every row, and the same command again does what is not done.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

__all__ = ["PARTS", "SHARES", "earlier", "fresh", "pending", "share_of"]

SHARES = {
    "check": 60.0,
    "rates": 15.0,
    "ops": 170.0,
    "profile": 180.0,
    "discriminator": 60.0,
    "fd": 75.0,
    "tests": 100.0,
    "runs": 120.0,
}
"""Seconds of each part; together 13 minutes, so that two calls fit a quarter of an hour with the
machine's start."""
PARTS = tuple(SHARES)
SAME = ("gpu", "cpu", "torch", "triton", "commit")
"""Facts of a machine by which an earlier result is of the same thing."""


def share_of(part: str, budget: float) -> float:
    """Seconds of a part; more in proportion where the whole budget is larger than all shares."""
    return SHARES[part] * max(1.0, budget / sum(SHARES.values()))


def fresh(machine: Mapping[str, Any], *, rehearsal: bool, backend: str) -> dict[str, Any]:
    """A result without results."""
    left_out = {"left_out": "not run"}
    parts = ("profile", "discriminator", "fd", "tests", "runs")
    return {
        "rehearsal": rehearsal,
        "complete": False,
        "machine": dict(machine),
        "compile_backend": backend,
        "done": {},
        "check": [],
        "rates": {},
        "rows": [],
        "left_out": [],
        **{name: dict(left_out) for name in parts},
    }


def earlier(path: Path, new: Mapping[str, Any]) -> dict[str, Any] | None:
    """The result in a file, if it is one of the same machine, versions and commit; else None."""
    try:
        old = json.loads(path.read_text())
        same = old["rehearsal"] == new["rehearsal"]
        same = same and all(old["machine"][key] == new["machine"][key] for key in SAME)
        same = same and set(new) <= set(old)
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return old if same else None


def pending(result: Mapping[str, Any], asked: Sequence[str] | None) -> list[str]:
    """Parts to run, in order: those asked for by name, or all that are not done."""
    return [p for p in PARTS if (p in asked if asked else p not in result["done"])]
