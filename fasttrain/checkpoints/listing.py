"""`fasttrain runs`: what there is, and how it stands, from small files alone.

for run in runs_in(Path("runs")): print(run.name, run.state, run.images)
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fasttrain.checkpoints.lock import holder
from fasttrain.checkpoints.stats import read_stats
from fasttrain.settings.of_run import load_run_settings
from fasttrain.settings.trainings import training_of
from fasttrain.system.errors import UserError

__all__ = ["Listed", "listed", "runs_in", "table"]

DEPTH = 3


@dataclass(frozen=True)
class Listed:
    """A run in a list.

    Attributes:
        state: `training`, `finished`, `stopped`, `new` (before its first checkpoint) or `damaged`.
        images, of: seen at the newest checkpoint, and to train for.
        metric, value: the last evaluation's, by the run's `evaluate.metric`.
        age: seconds since it last wrote.
        process: who trains it, where one does.
    """

    name: str
    task: str
    state: str
    images: int
    of: int
    metric: str
    value: float | None
    age: float
    process: str | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def runs_in(folder: Path) -> list[Listed]:
    """The runs below a folder, the newest first. Raises UserError when there is no folder."""
    if not folder.is_dir():
        raise UserError(f"no folder {folder}: name the one that has the runs")
    places: list[Path] = [folder]
    for depth in range(1, DEPTH + 1):
        places += folder.glob("/".join("*" * depth))
    runs = [place for place in places if (place / "config.yaml").is_file()]
    return sorted((listed(run, folder) for run in runs), key=lambda run: run.age)


def listed(run: Path, folder: Path) -> Listed:
    """How a run stands, under its name in the folder."""
    name = str(run.relative_to(folder)) if run != folder else run.resolve().name
    numbers = [path.name.removeprefix("step-") for path in (run / "checkpoints").glob("step-*")]
    images = max((int(n) for n in numbers if n.isdecimal() and len(n) < 19), default=0)
    written = [run / "config.yaml", run / "stats.jsonl", run / "checkpoints"]
    now = time.time()
    age = now - max((path.stat().st_mtime for path in written if path.exists()), default=now)
    try:
        settings = load_run_settings(run)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged lines
            stats = read_stats(run)
    except UserError:
        return Listed(name, "", "damaged", images, 0, "", None, age, None)
    metric = settings.evaluate.metric
    values = [line[metric] for line in stats if metric in line]
    process = holder(run)
    state = "finished" if images >= settings.images else "stopped" if images else "new"
    return Listed(
        name,
        training_of(settings).task,
        "training" if process else state,
        max(images, stats[-1]["images"] if stats and process else 0),
        settings.images,
        metric,
        values[-1] if values else None,
        age,
        process,
    )


def table(runs: Sequence[Listed]) -> list[str]:
    """Lines for people."""
    rows = [("run", "training", "state", "images", "metric", "last written", "by")]
    for run in runs:
        share = f"{run.images:,} of {run.of:,}" if run.of else f"{run.images:,}"
        value = "" if run.value is None else f"{run.metric} {run.value:.4g}"
        rows.append(
            (run.name, run.task, run.state, share, value, f"{_age(run.age)} ago", run.process or "")
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"
