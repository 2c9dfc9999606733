"""The curves of a run's report: statistics and evaluations during training.

charts_of(read_stats(run), evaluation, settings)       # losses, logits, speed, evaluate.metric
"""

from __future__ import annotations

from typing import Any

from fasttrain.analysis.report.svg import Chart, Level, Series, thin
from fasttrain.evaluation.summary import rows_of
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import RunSettings
from fasttrain.settings.trainings import training_of

__all__ = ["ROWS", "charts_of", "short_of"]

COLOURS = {
    "loss/generator": "after",
    "loss/discriminator": "judge",
    "loss/r1": "judge",
    "loss/r2": "judge",
    "loss/distillation": "after",
    "loss/velocity": "after",
    "loss/denoising": "teacher",
    "ratio/real": "real",
    "ratio/fake": "after",
    "logits/real": "real",
    "logits/fake": "after",
}
CURVES = {
    "fd": "Fréchet distance (fd)",
    "fd_full": "Fréchet distance in all dimensions (fd_full)",
    "kd": "Kernel distance (kd)",
    "precision": "Precision (higher is better)",
    "recall": "Recall (higher is better)",
    "is": "Inception score (higher is better)",
}
"""Title of the curve of `evaluate.metric`."""
ROWS = {
    "real_floor": "real",
    "teacher_18": "teacher",
    "one_step_before": "before",
    "one_step_after": "after",
    "one_step": "before",
}
"""The page's colour of each row of an evaluation."""


def short_of(settings: RunSettings) -> dict[str, str]:
    """Short title of each row."""
    return {row.name: row.short for row in rows_of(settings)}


def charts_of(
    stats: list[dict[str, Any]],
    evaluation: dict[str, Any],
    settings: RunSettings,
) -> list[Chart]:
    """The charts of statistics and evaluations, without empty ones."""

    def lines(*names: str) -> list[Series]:
        found = []
        for name in names:
            points = thin([(line["images"], line[name]) for line in stats if name in line])
            if points:
                found.append(Series(name.partition("/")[2], COLOURS.get(name, "judge"), points))
        return found

    end = stats[-1]["images"] if stats else 0
    judges = getattr(settings, "judges", ())  # of a training by Frechet distances
    distances = [f"loss/{judge.name}" for judge in judges]
    metric = settings.evaluate.metric
    known = evaluation.get(metric, {})
    measured = _metric_line(stats, metric, known, settings)
    charts = [
        Chart(metric, CURVES[metric], end, measured, _levels(known, short_of(settings))),
        Chart("losses", "Losses", end, lines("loss/generator", "loss/discriminator")),
        Chart("reward", "Loss of the reward", end, lines("loss/reward")),
        Chart("judges", "Frechet distances of the judges", end, lines(*distances)),
        Chart("distillation", "Distillation loss", end, lines("loss/distillation")),
        Chart("velocity", "Squared error of the average velocity", end, lines("loss/velocity")),
        Chart("ratio", "Logits of the classifier", end, lines("ratio/real", "ratio/fake")),
        Chart("denoising", "Denoising loss", end, lines("loss/denoising")),
        Chart("logits", "Discriminator logits", end, lines("logits/real", "logits/fake")),
        Chart("r1", "R1: squared gradient at real images", end, lines("loss/r1")),
        Chart("r2", "R2: squared gradient at generated images", end, lines("loss/r2")),
        Chart("speed", "Images per second", end, _speed(stats), zero=True),
    ]
    return [chart for chart in charts if chart.series]


def _levels(known: dict[str, float], short: dict[str, str]) -> list[Level]:
    names = [row for row in ("teacher_18", "real_floor") if row in known]
    return [Level(short[row], ROWS[row], known[row]) for row in names]


def _metric_line(
    stats: list[dict[str, Any]],
    metric: str,
    known: dict[str, float],
    settings: RunSettings,
) -> list[Series]:
    """The evaluations in the loop; the line of a fine-tuning begins with that of its start."""
    points = thin([(line["images"], line[metric]) for line in stats if metric in line])
    training = training_of(settings)
    tuned = training.generator
    if tuned and points and "one_step_before" in known:
        points.insert(0, (0, known["one_step_before"]))
    label, colour = (
        (Sampler.of(settings).title, "after") if tuned else (training.network, "teacher")
    )
    return [Series(label, colour, points, marked=len(points) <= 60)] if points else []


def _speed(stats: list[dict[str, Any]]) -> list[Series]:
    points = []
    before = {"images": 0, "seconds": 0.0}
    for line in stats:
        if "seconds" not in line:
            continue
        seconds = line["seconds"] - before["seconds"]
        if seconds > 0:
            points.append((line["images"], (line["images"] - before["images"]) / seconds))
        before = line
    return [Series("images/s", "ink", thin(points))] if points else []
