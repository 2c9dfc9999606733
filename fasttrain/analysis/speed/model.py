"""What an iteration's passes cost on a GPU, by phase and operator.

Optimizers, averages, data and what processes send each other are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from fasttrain.analysis.speed.costs import Cost, cost_of, summed
from fasttrain.analysis.speed.phases import phases
from fasttrain.analysis.speed.rates import CPU, Gpu
from fasttrain.analysis.speed.trace import Launch
from fasttrain.settings import FinetuneSettings

__all__ = ["cost_of_all", "described", "expect"]

MOST = 12
"""Operators of a phase that are kept: those that take longest."""
TWICE = "exact "
"""What the phases begin with that no CUDA graph holds: they are differentiated twice."""


def expect(settings: FinetuneSettings, gpu: Gpu, images: int) -> dict[str, Any]:
    """The model of one micro-batch of `images` on one GPU. Batch norm is over as many of its images
    as divide it. See `described`."""
    judge = settings.discriminator
    group = math.gcd(judge.norm_group, images)
    settings = settings.model_copy(
        update={"discriminator": judge.model_copy(update={"norm_group": group})}
    )
    return described(phases(settings, images), gpu, graphs=settings.graphs)


def described(
    traced: Mapping[str, tuple[list[Launch], float]], gpu: Gpu, *, graphs: bool = False
) -> dict[str, Any]:
    """`phases`: by name, how many `times` in an iteration, seconds of the GPU (`floor`, `expected`)
    and of the `cpu`, launches, bytes, operations, instructions and `operators`. `iteration`: sums,
    and `seconds`: in each phase the GPU's expected time or the CPU's, whichever is longer. graphs:
    whether passes are replayed as CUDA graphs, which takes the CPU one launch."""
    rows = {}
    for phase, (launches, times) in traced.items():
        row = {"times": times, **_row(launches, gpu)}
        if graphs and not phase.startswith(TWICE):
            row["cpu"] = CPU["ours"]
        rows[phase] = row
    names = ("floor", "expected", "cpu", "launches", "issued")
    total = {name: sum(row[name] * row["times"] for row in rows.values()) for name in names}
    total["seconds"] = sum(max(row["expected"], row["cpu"]) * row["times"] for row in rows.values())
    return {"phases": rows, "iteration": total}


def cost_of_all(launches: list[Launch], gpu: Gpu) -> dict[str, Any]:
    return _rounded(summed(cost_of(launch, gpu) for launch in launches))


def _row(launches: list[Launch], gpu: Gpu) -> dict[str, Any]:
    operators: dict[str, list[Cost]] = {}
    for launch in launches:
        operators.setdefault(launch.name, []).append(cost_of(launch, gpu))
    costs = {name: summed(group) for name, group in operators.items()}
    order = sorted(costs, key=lambda name: -costs[name].expected)
    return {
        **_rounded(summed(c for group in operators.values() for c in group)),
        "operators": {name: _rounded(costs[name]) for name in order[:MOST]},
    }


def _rounded(cost: Cost) -> dict[str, Any]:
    row = asdict(cost)
    return row | {key: float(f"{row[key]:.4g}") for key in ("floor", "expected", "cpu")}
