"""Values for a run's report from its JSON files, which may be damaged or come from anyone: values
of the types that the page prints, or nothing.

    evaluation, stale = evaluation_of(run, images)
    audit, judge = audit_in(run, settings), judge_in(run)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fasttrain.checkpoints.stats import is_number
from fasttrain.evaluation.kept import table_at
from fasttrain.evaluation.protocol import METRICS, UNREADABLE, said
from fasttrain.evaluation.result import values_of
from fasttrain.models.audit import audit_of
from fasttrain.settings import RunSettings
from fasttrain.system.files import read_json

__all__ = ["audit_in", "evaluation_of", "judge_in"]


def evaluation_of(run: Path, images: int) -> tuple[dict[str, Any], str]:
    """The table of a run (empty without one), and a warning when it is of another checkpoint."""
    nothing: dict[str, Any] = {"fd": {}, "protocol": [], "seconds": None, "titles": {}}
    try:
        result = table_at(run, images)
    except FileNotFoundError:
        return nothing, ""
    except (OSError, ValueError):
        return nothing, "evaluation.json cannot be read."
    found = {metric: values_of(result, metric) for metric in METRICS}
    evaluation = nothing | {metric: values for metric, values in found.items() if values}
    evaluation["protocol"] = said(result["protocol"])
    evaluation["seconds"] = result["made"].get("seconds")
    evaluation["titles"] = {name: row["title"] for name, row in result["rows"].items()}
    seen = result["model"]["images_seen"]
    if seen in (None, images):
        return evaluation, ""
    other = f"These numbers are of the checkpoint at {seen:,} images, the page is of {images:,}."
    return evaluation, other


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
