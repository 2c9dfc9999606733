"""Results in a run directory: the table of its newest checkpoint is `evaluation.json`, those of
others lie beside it as `evaluation-at-IMAGES.json`, and a model's results by protocol.

    write_table(saved, result)
    table_at(run, images)                  # of this checkpoint, else what `evaluation.json` holds
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.saved import SavedRun
from fasttrain.evaluation.protocol import METRICS, said
from fasttrain.evaluation.result import metrics_of_rows, read_result, text, write_result
from fasttrain.models.export.card import Quality
from fasttrain.system.files import one_line

__all__ = ["card_quality", "kept_texts", "table_at", "table_of", "write_table"]

TABLE = "evaluation.json"


def table_of(saved: SavedRun) -> Path:
    """The file of the table of a run at its checkpoint."""
    newest = checkpoint.steps(saved.path / "checkpoints")[-1]
    return saved.path / TABLE if saved.images == newest.images else _at(saved.path, saved.images)


def write_table(saved: SavedRun, result: Mapping[str, Any]) -> None:
    """Write the table of a run at its checkpoint, and keep that of an earlier one."""
    path = table_of(saved)
    with suppress(OSError, ValueError):
        earlier = read_result(path)
        seen = earlier["model"]["images_seen"]
        if seen not in (None, saved.images) and not _at(saved.path, seen).exists():
            write_result(_at(saved.path, seen), earlier)
    write_result(path, result)
    if path.name == TABLE:  # of two tables of one checkpoint that beside it is the newer one
        _at(saved.path, saved.images).unlink(missing_ok=True)


def table_at(run: Path, images: int) -> dict[str, Any]:
    """The table of a run at a checkpoint, else the one in `evaluation.json`.

    Raises OSError or ValueError where there is none, or that file cannot be read.
    """
    own = _at(run, images)
    return read_result(own if own.exists() else run / TABLE)


def _at(run: Path, images: int) -> Path:
    return run / f"evaluation-at-{images}.json"


def kept_texts(run: Path) -> list[str]:
    """The texts of the results in a run directory, without unreadable ones."""
    texts = []
    for path in sorted(run.glob("evaluation-*.json")):
        with suppress(OSError, ValueError):
            texts.append(text({**read_result(path), "path": path.name}))
    return texts


def card_quality(run: Path, images: int) -> Quality | None:
    """A run's table in Markdown, with its protocol, and its own model's metrics, if the checkpoint
    at this number of images was evaluated."""
    try:
        result = table_at(run, images)
    except (OSError, ValueError):
        return None
    if result["model"]["images_seen"] != images:
        return Quality("None of this checkpoint: it has not been evaluated.")
    rows, metrics = result["rows"], metrics_of_rows(result["rows"])
    lines = ["| | " + " | ".join(metrics) + " |", "|---" * (len(metrics) + 1) + "|"]
    for name, row in rows.items():
        cells = " | ".join(f"{row['metrics'][metric]['value']:.4g}" for metric in metrics)
        lines.append(f"| {one_line(name.replace('_', ' '))} | {cells} |")
    protocol = dict(result["protocol"])
    if "code" not in protocol:  # earlier evaluations record a full path
        protocol.pop("reference", None)
    text = [f"    {line}" for told in said(protocol) for line in told.splitlines()]
    own, by = rows.get("one_step_after"), protocol.get("code")
    numbers = [
        {
            "name": f"{METRICS[metric]} (fasttrain, protocol {one_line(by)})",
            "type": metric,
            "value": float(f"{own['metrics'][metric]['value']:.6g}"),
        }
        for metric in (metrics if own and by else ())
        if math.isfinite(own["metrics"][metric]["value"])
    ]
    data = str(dict(protocol.get("reference") or {}).get("data", "")) if by else ""
    return Quality("\n".join([*lines, "", *text]), numbers, data)
