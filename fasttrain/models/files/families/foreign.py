"""What a reader of a family gives: the network, its preconditioning and its weights, under our
names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

__all__ = ["Foreign", "Latents"]


@dataclass(frozen=True)
class Latents:
    """How a network's numbers become those that a decoder takes, channel by channel:
    `(x - bias) / scale`."""

    scale: tuple[float, ...]
    bias: tuple[float, ...]
    low: float = -1.0
    """The decoder's black; white is 1."""


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
