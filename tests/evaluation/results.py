"""What a result says of its model."""

from __future__ import annotations

from typing import Any

import torch

from fasttrain.system.processes import World

ALONE = World(0, 1, torch.device("cpu"))


def values(result: dict[str, Any]) -> dict[str, float]:
    return {name: estimate["value"] for name, estimate in metrics_of(result).items()}


def metrics_of(result: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = result["rows"]["model"]["metrics"]
    return found
