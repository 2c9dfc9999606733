"""`fasttrain report RUN`: one HTML page with pictures, curves, numbers and settings of a run.

    write_report(Path("runs/digits-d2o-f"))        # -> runs/digits-d2o-f/report.html

The page is self-contained: pictures are embedded as PNG, curves as SVG; it has no scripts and loads
nothing, which its content security policy also enforces. Each of four quantities has one colour
throughout: real images, the diffusion model, one step before and one step after fine-tuning.
"""

from __future__ import annotations

import math
import os
import platform
import shlex
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from fasttrain import __version__
from fasttrain.analysis.report.charts import ROWS, charts_of, short_of
from fasttrain.analysis.report.files import audit_in, evaluation_of, judge_in
from fasttrain.analysis.report.grids import Layout, compare, progress
from fasttrain.analysis.report.svg import Scale
from fasttrain.analysis.report.template import duration, number, template
from fasttrain.checkpoints.checkpoint import Step
from fasttrain.checkpoints.saved import SavedRun
from fasttrain.checkpoints.stats import read_stats
from fasttrain.data import storage_of
from fasttrain.evaluation.kept import kept_texts
from fasttrain.evaluation.protocol import METRICS
from fasttrain.evaluation.shared import shared
from fasttrain.evaluation.summary import rows_of
from fasttrain.models.audit import audit_of
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import RunSettings
from fasttrain.settings.recipes import to_yaml
from fasttrain.settings.trainings import training_of
from fasttrain.system.errors import UserError
from fasttrain.system.files import probe, write_atomic
from fasttrain.training.run.stop_rule import StopRule
from fasttrain_data import DataError

__all__ = ["write_report"]


def write_report(run: Path, *, trust_urls: bool = False, out: Path | None = None) -> Path:
    """Write `RUN/report.html`, or `out`, completely or not at all, and return its path.

    trust_urls: open the URL of the data that the run names; else its pictures are omitted.

    Parts that a run does not have yet (metrics, base model, data) are omitted, with instructions to
    get them. Raises UserError when RUN is not a run directory or has no intact checkpoint.
    """
    saved, path = SavedRun.open(run), out or run / "report.html"
    probe(path)
    settings, step = saved.settings, saved.step
    stats = [line for line in read_stats(run) if line.get("images", math.inf) <= step.images]
    evaluation, stale = evaluation_of(run, step.images)
    page = template("page.html.j2").render(
        name=run.resolve().name,
        run=shlex.quote(str(run)),
        settings=settings,
        method=_method(settings),
        images_seen=step.images,
        facts=_facts(settings, stats, step),
        evaluation=evaluation,
        stale=stale,
        shared=shared(settings),
        steps=Sampler.of(settings).evaluations,
        dots=_dots(evaluation["fd"], settings),
        columns=_columns(evaluation),
        rows=_rows(evaluation, settings),
        measured=kept_texts(run),
        pictures=compare(saved, trust_urls),
        layout=Layout.of(settings.network),
        classes=_class_names(settings, trust_urls),
        charts=charts_of(stats, evaluation, settings),
        strip=progress(run),
        audit=audit_in(run, settings),
        judge=judge_in(run),
        yaml=to_yaml(settings),
        machine=_machine(),
        now=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    write_atomic(path, page)
    return path


def _method(settings: RunSettings) -> str:
    training = training_of(settings)
    generator = f"{Sampler.of(settings).adjective} generator"
    return training.method(settings, generator if training.generator else training.network)


def _facts(
    settings: RunSettings, stats: list[dict[str, Any]], step: Step
) -> list[tuple[str, str, str]]:
    """The small numbers under the headline: (name, value, remark)."""
    audit = audit_of(settings).total
    share = f"{100 * audit.trainable_fraction:.1f} %"
    seconds = float(step.state.get("seconds") or 0)
    whole, rule = step.images >= settings.images, StopRule(settings)
    rule.load(step.state.get("stop"))
    remark = f"stopped early: {rule.sentence}" if rule.spent else "unfinished"
    facts = [
        ("images seen", f"{step.images:,}", "" if whole else f"of {settings.images:,}, {remark}"),
        ("trainable", share, f"{audit.trainable:,} of {audit.parameters:,} parameters"),
    ]
    if seconds > 0:
        rate = f"{number(step.images / seconds)} images/s"
        facts.append(("training time", duration(seconds), f"{rate}, evaluations included"))
    waiting = [line["data/waiting"] for line in stats if "data/waiting" in line]
    if waiting:
        facts.append(("waiting for data", f"{100 * sum(waiting) / len(waiting):.1f} %", "of it"))
    skipped = sum(line.get("skipped/images", 0) for line in stats)
    if skipped:
        facts.append(("images skipped", f"{skipped:,.0f}", "unreadable or unavailable"))
    return facts


@dataclass(frozen=True)
class Dot:
    """A row of the headline's dot plot; `left` in percent of the axis."""

    label: str
    colour: str
    value: float
    left: float


def _dots(fd: dict[str, float], settings: RunSettings) -> list[Dot]:
    """The distances on one logarithmic axis, the best first."""
    positive = {row: max(value, 1e-6) for row, value in fd.items() if math.isfinite(value)}
    if not positive:
        return []
    short = short_of(settings)
    scale = Scale.fit(positive.values(), log=True)
    return [
        Dot(short.get(row, row), ROWS.get(row, "judge"), fd[row], round(100 * scale.at(value), 1))
        for row, value in sorted(positive.items(), key=lambda item: item[1])
    ]


def _columns(evaluation: dict[str, Any]) -> list[str]:
    """The metrics in the evaluation."""
    return [metric for metric in METRICS if metric in evaluation]


def _rows(evaluation: dict[str, Any], settings: RunSettings) -> list[dict[str, Any]]:
    """The evaluation's rows: title, colour, a number or None for each metric."""
    titles = evaluation["titles"] | {row.name: row.title for row in rows_of(settings)}
    return [
        {
            "name": row,
            "title": titles[row],
            "colour": ROWS.get(row, "judge"),
            "values": [evaluation[metric].get(row) for metric in _columns(evaluation)],
        }
        for row in evaluation["titles"]
    ]


def _class_names(settings: RunSettings, trust_urls: bool) -> list[str]:
    """Names of the classes in the grids; empty without classes or without the data."""
    if not settings.network.label_dim:
        return []
    try:
        names = [
            entry.name
            for entry in storage_of(settings.data, settings.network, trust_urls=trust_urls)
            .index()
            .classes
        ]
    except (DataError, UserError):
        return []
    return names[: Layout.of(settings.network).classes]


def _machine() -> list[tuple[str, str]]:
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    cores = f"CPU, {torch.get_num_threads()} threads, {os.cpu_count()} cores"
    return [
        ("fasttrain", __version__),
        ("Python", platform.python_version()),
        ("PyTorch", torch.__version__),
        ("platform", platform.platform()),
        ("device", ", ".join([*devices, cores])),
    ]
