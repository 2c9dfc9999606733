"""The phases of an iteration, each between two stamps, and their table.

A segment between two stamps belongs to one phase, so the phases of an iteration add up to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from statistics import median
from typing import Any

from fasttrain.analysis.profiling.meter import summarise

__all__ = ["AVERAGE", "OPTIMIZER", "Event", "Phases", "phase_table", "phases_of"]

STEPS = ("generator step", "discriminator step", "R1 step", "average")
SPECTRAL, BETWEEN = "spectral norm", "between: latents, losses, reports"
OPTIMIZER, AVERAGE, INPUT_GRADIENT = "optimizer", "EMA", "gradient of the images"

Event = tuple[str, float]
"""`(name`: a call begins, `name)`: it ends, with the time in milliseconds. Calls do not overlap,
except for the iteration, which is the first event and the last."""

Phases = dict[tuple[str, str], float]
"""Milliseconds by (step, phase), in the order in which they ran."""


def phases_of(events: Sequence[Event]) -> Phases:
    """Phases of the events. The loop's order identifies the steps: generator, discriminator, then
    R1 if it is due, each up to its optimizer's end and, except for the generator's, the spectral
    norm after it."""
    phases: Phases = {}
    steps_done = 0
    for (before, start), (after, end) in pairwise(events):
        step = STEPS[min(steps_done, 2)]
        if AVERAGE in before:
            key = (STEPS[-1], AVERAGE)
        elif after.endswith(")") and before == f"({after[:-1]}":
            key = (step, after[:-1])
        elif before == f"{OPTIMIZER})" and steps_done > 1:
            key = (STEPS[steps_done - 1], SPECTRAL)
        elif before == "forward D)" and steps_done == 2:
            key = (step, INPUT_GRADIENT)
        else:
            key = (step, BETWEEN)
        phases[key] = phases.get(key, 0.0) + end - start
        steps_done += after == f"{OPTIMIZER})"
    return phases


def phase_table(
    plain: Sequence[float],
    phases: Sequence[Phases],
    with_r1: Sequence[float],
    r1_phases: Sequence[Phases],
    interval: int,
) -> dict[str, Any]:
    """Rows of the phases with their sum; an R1 step counts once in `interval` iterations.

    plain, with_r1: milliseconds of whole iterations, measured separately from those of `phases` and
    `r1_phases`; both of the latter are empty without R1.
    """
    r1 = [{key: v for key, v in taken.items() if key[0] == STEPS[2]} for taken in r1_phases]
    rows: list[dict[str, Any]] = []
    for samples, every in ((phases, 1), (r1, interval)):
        for step, phase in samples[0] if samples else ():
            timing = summarise([taken[step, phase] for taken in samples])
            rows.append({"step": step, "phase": phase, "every": every, **asdict(timing)})
            rows[-1]["amortised_ms"] = timing.median_ms / every
    # Steps in their order, the time between calls last; otherwise in the order of execution.
    rows.sort(key=lambda row: (STEPS.index(row["step"]), row["phase"] == BETWEEN))
    total = sum(row["amortised_ms"] for row in rows)
    for row in rows:
        row["share"] = row["amortised_ms"] / total
    iteration = summarise(plain)
    measured = iteration.median_ms
    if with_r1:
        measured += (median(with_r1) - iteration.median_ms) / interval
    return {
        "rows": rows,
        "sum_ms": total,
        "measured_ms": measured,
        "difference_ms": total - measured,
        "iteration": asdict(iteration),
        "iteration_with_r1": asdict(summarise(with_r1)) if with_r1 else None,
        "r1": asdict(summarise([sum(taken.values()) for taken in r1])) if r1 else None,
    }
