"""What a reader of a family gives: the network, its preconditioning and its weights, under our
names."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Foreign", "Latents"]

MAX_TEXT = 10_000


@dataclass(frozen=True)
class Latents:
    """How a network's numbers become those that a decoder takes, channel by channel:
    `(x - bias) / scale`."""

    scale: tuple[float, ...]
    bias: tuple[float, ...]
    low: float = -1.0
    """The decoder's black; white is 1."""

    @classmethod
    def parsed(cls, text: str) -> Latents:
        """From the JSON of its fields. Raises ValueError on anything else."""
        values: Any = json.loads(text) if len(text) <= MAX_TEXT else None
        try:
            made = cls(tuple(map(float, values["scale"])), tuple(map(float, values["bias"])))
            low = float(values["low"])
        except (TypeError, KeyError, ValueError):
            raise ValueError("its latents are described in an unknown way") from None
        if len(made.scale) != len(made.bias) or not all(map(math.isfinite, (*made.bias, low))):
            raise ValueError("its latents are described in an unknown way")
        if not all(0 < value < math.inf for value in made.scale):
            raise ValueError("its latents are described in an unknown way")
        return cls(made.scale, made.bias, low)


@dataclass(frozen=True)
class Foreign:
    """A model out of somebody else's file.

    Attributes:
        description: what the file is, for people.
        network: fields of `NetworkSettings`.
        weights: float tensors by our names, those of the U-Net or transformer below `model.`;
            filters that do not train may be left out.
        sigma: noise level of a one-step generator's step; None for a diffusion model.
        latents: of a network that works on latents.
        decoder: weights of the decoder that came with it, under its own names.
    """

    description: str
    network: dict[str, Any]
    weights: dict[str, Tensor]
    sigma: float | None = None
    latents: Latents | None = None
    decoder: Mapping[str, Tensor] = field(default_factory=dict)
