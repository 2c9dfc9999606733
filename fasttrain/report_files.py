"""What a run's report takes from JSON files of the run, which may be damaged, or anyone's: values
of the kinds that the page prints, or nothing.

    evaluation, stale = evaluation_of(run, images)
    audit, judge = audit_in(run, settings), judge_in(run)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fasttrain.dry_run import audit_of
from fasttrain.errors import UserError
from fasttrain.evaluation.protocol import METRICS, UNREADABLE, said
from fasttrain.files import read_json
from fasttrain.metrics import is_number
from fasttrain.settings import RunSettings

__all__ = ["audit_in", "evaluation_of", "judge_in"]


def evaluation_of(run: Path, images: int) -> tuple[dict[str, Any], str]:
    """`evaluation.json`, empty without one, and a warning when it is of another checkpoint."""
    metrics: tuple[str, ...] = ("fd", "fd_full", "kd")
    nothing: dict[str, Any] = {m: {} for m in (*metrics, "protocol")} | {"seconds": None}
    try:
        found = read_json(run / "evaluation.json")
        metrics = (*metrics, *(m for m in METRICS if m in found and m not in metrics))
        numbers = {m: {row: _number(v) for row, v in found[m].items()} for m in metrics}
        seen = int(found["protocol"].get("images_seen", images))
        seconds = _number(found["seconds"])
        if not math.isfinite(seconds):
            raise ValueError
        protocol = said(found["protocol"])
    except FileNotFoundError:
        return nothing, ""
    except UNREADABLE:
        return nothing, "evaluation.json cannot be read."
    other = f"These numbers are of the checkpoint at {seen:,} images, the page is of {images:,}."
    evaluation = {**numbers, "protocol": protocol, "seconds": seconds}
    return evaluation, "" if seen == images else other


def audit_in(run: Path, settings: RunSettings) -> dict[str, Any]:
    """`audit.json`, which fine-tuning writes; else the same count from the settings."""
    counts = {"parameters": _is_count, "trainable": _is_count, "trainable_fraction": is_number}
    try:
        found = read_json(run / "audit.json")
        named = {"type": _is_name, **counts}
        if _has(found, counts) and all(_has(row, named) for row in found["rows"]) and found["rows"]:
            return found
    except UNREADABLE:
        pass
    return audit_of(settings).to_dict()


def judge_in(run: Path) -> dict[str, Any]:
    """`discriminator.json`, which fine-tuning writes at its start; empty without one."""
    kinds = {"name": _is_name, "resolution": _is_count, "random": lambda v: type(v) is bool}
    cosines = {"logits": is_number, "gradient": is_number}
    try:
        found = read_json(run / "discriminator.json")
        known = _has(found, {"precision": _is_name}) and all(
            _has(row, kinds | {name: fits for name, fits in cosines.items() if name in row})
            for row in found["backbones"]
        )
        return found if known and found["backbones"] else {}
    except UNREADABLE:
        return {}


def _has(row: Any, kinds: Mapping[str, Callable[[Any], bool]]) -> bool:
    return isinstance(row, dict) and all(k in row and fits(row[k]) for k, fits in kinds.items())


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_name(value: Any) -> bool:
    return isinstance(value, str)


def _number(value: Any) -> float:
    if not is_number(value):
        raise UserError(f"{value!r:.40} is no number")
    return float(value)
