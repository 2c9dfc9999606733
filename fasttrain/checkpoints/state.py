"""Checks of the values in a checkpoint's `state.json`, which may come from anyone.

state = checked(read_json(path), path)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fasttrain.system.errors import UserError

__all__ = ["checked"]


def checked(state: dict[str, Any], path: Path) -> dict[str, Any]:
    """The same state. Raises UserError, naming the first value of a wrong type."""
    for name, fits in KINDS.items():
        if name in state and not fits(state[name]):
            raise UserError(f"{path} is not the state of a run: its {name} has a wrong type")
    return state


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_seconds(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value < math.inf


def _is_table(value: Any) -> bool:
    return value is None or isinstance(value, dict)


def _is_base(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    named = isinstance(value.get("sha256"), str) and _is_table(value.get("origin"))
    return named and value.get("frozen", "float32") in ("float32", "bfloat16", "float16")


def _is_precision(value: Any) -> bool:
    return value in (None, "float32", "bfloat16")


def _is_stop(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    counts = _is_count(value.get("images")) and _is_count(value.get("since"))
    how = value.get("how")
    named = isinstance(how, list) and len(how) == 2 and isinstance(how[0], str)
    return counts and named and type(value.get("best")) in (int, float, type(None))


def _is_history(value: Any) -> bool:
    """Of learning rates: an entry for each change."""
    return isinstance(value, list) and all(
        isinstance(entry, dict)
        and _is_count(entry.get("images"))
        and all(map(_is_seconds, entry.values()))
        for entry in value
    )


def _is_branch(value: Any) -> bool:
    if not isinstance(value, dict):
        return value is None
    return isinstance(value.get("run"), str) and _is_count(value.get("images"))


KINDS: dict[str, Callable[[Any], bool]] = {
    "images": _is_count,
    "iterations": _is_count,
    "rollbacks": _is_count,
    "seconds": _is_seconds,
    "data": _is_table,
    "base": _is_base,
    "precision": _is_precision,
    "evaluation": _is_table,
    "stop": _is_stop,
    "rates": _is_history,
    "branch": _is_branch,
}
