"""The speed model's phases beside the measured ones, where it knows the GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fasttrain.analysis.speed.model import expect
from fasttrain.analysis.speed.rates import gpu_named
from fasttrain.settings import FinetuneSettings

__all__ = ["beside", "expected_of"]

Rows = Sequence[Mapping[str, Any]]

MEASURED = {
    "generator forward": (("generator step", "forward G"),),
    "discriminator, generator's step forward": (("generator step", "forward D"),),
    "generator backward": (("generator step", "backward"),),
    "discriminator, generator's step backward": (("generator step", "backward"),),
    "generator forward, without graph": (("discriminator step", "forward G"),),
    "discriminator's step forward": (("discriminator step", "forward D"),),
    "discriminator's step backward": (("discriminator step", "backward"),),
    "exact R1 forward": (("R1 step", "forward D"), ("R1 step", "gradient of the images")),
    "exact R2 forward": (("R1 step", "forward D"), ("R1 step", "gradient of the images")),
    "exact R1 backward": (("R1 step", "backward"),),
    "exact R2 backward": (("R1 step", "backward"),),
}
"""Phases of the model -> the (step, phase) pairs of the profile in which they are measured."""


def expected_of(
    settings: FinetuneSettings, device: str, measured: Mapping[str, Any]
) -> dict[str, Any] | None:
    """The model of a profile's settings on the GPU of CUDA's name `device`, beside the measured
    phases; None for a GPU that it does not know."""
    gpu = gpu_named(device)
    if gpu is None:
        return None
    model = expect(settings, gpu, settings.batch)
    return {"gpu": gpu.name, **beside(model, measured)}


def beside(model: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """`rows`: title, floor_ms, expected_ms, measured_ms of what is measured together, amortised;
    `iteration`: the same of the whole, of which optimizers and averages are measured alone."""
    groups: dict[tuple[tuple[str, str], ...], list[str]] = {}
    for phase in model["phases"]:
        groups.setdefault(MEASURED[phase], []).append(phase)
    times = {(row["step"], row["phase"]): row["amortised_ms"] for row in measured["rows"]}
    rows = []
    for places, names in groups.items():
        parts = [model["phases"][name] for name in names]
        floor, expected = (
            1e3 * sum(part[key] * part["times"] for part in parts) for key in ("floor", "expected")
        )
        rows.append(
            {
                "title": f"{places[0][0]}: {', '.join(phase for _, phase in places)}",
                "floor_ms": floor,
                "expected_ms": expected,
                "measured_ms": sum(times.get(place, 0.0) for place in places),
            }
        )
    whole = model["iteration"]
    iteration = {
        "floor_ms": 1e3 * whole["floor"],
        "expected_ms": 1e3 * whole["seconds"],
        "measured_ms": measured["measured_ms"],
    }
    return {"rows": rows, "iteration": iteration}
