"""Learning rates of a run, which may change when it is resumed: each checkpoint records them all.

history = continued(state.get("rates", []), images, rates_of(settings))
history[-1]                         # {"images": 6400, "generator.rate": 5e-4, ...}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fasttrain.settings import RunSettings

__all__ = ["RATES", "changes", "continued", "flat", "rates_of"]

RATES = {"optimizer.rate", "generator.rate", "discriminator.optimizer.rate", "score.rate"}
RATES |= {"gan.discriminator.optimizer.rate"}
"""The settings that are learning rates."""


def rates_of(settings: RunSettings) -> dict[str, float]:
    """The rates of a training, by the names of their settings."""
    values = flat(settings.model_dump(mode="json"))
    return {name: values[name] for name in sorted(RATES & values.keys())}


def continued(
    history: Sequence[Mapping[str, Any]], images: int, rates: Mapping[str, float]
) -> list[dict[str, Any]]:
    """The history of a run that goes on at `images` with these rates: an entry for each change."""
    if history and rates.keys() <= history[-1].keys() and not changes(history[-1], rates):
        return [dict(entry) for entry in history]
    return [*(dict(entry) for entry in history), {"images": images, **rates}]


def changes(before: Mapping[str, Any], rates: Mapping[str, float]) -> list[str]:
    """The rates that differ, in words."""
    return [
        f"{name} {before[name]:g} -> {rate:g}"
        for name, rate in rates.items()
        if before.get(name, rate) != rate
    ]


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted names."""
    names: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            names |= flat(value, name + ".")
        else:
            names[name] = value
    return names
