"""What the discriminator must know of a frozen feature network, and where it is found.

backbone("vgg16_bn").published.file            # "vgg16_bn-6c64b313.pth"
network = backbone("vgg16_bn").new(seed=0)     # untrained
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from fasttrain.models.features.weights import Published
from fasttrain.settings.registry import BACKBONES, load
from fasttrain.system.errors import UserError
from fasttrain_kernels import Normalisation

__all__ = ["Backbone", "backbone"]


@dataclass(frozen=True)
class Backbone:
    """A kind of feature network.

    Attributes:
        make: seed -> an untrained network with `stage_channels` and `stages(normalised images
            [N, 3, H, W]) -> four maps`, differentiable twice in the images. What no file holds is
            a function of the seed.
        factors: the image's size over each map's: each twice the one before, or all the same, and
            then the heads see the maps unmixed.
        norm: normalisation of the images.
        published: its weights. Each parameter and buffer must be in the file, but for those whose
            names begin with `own`.
        crops: whether larger images are cropped at random to the resolution, not looked at whole.
        fold: changes the network with its weights, in place, so that it computes the same faster.
    """

    make: Callable[[int], Any]
    factors: tuple[int, int, int, int]
    norm: Normalisation
    published: Published
    own: str | None = None
    crops: bool = False
    fold: Callable[[Any], None] = lambda network: None

    def new(self, seed: int) -> Any:
        """An untrained network on the CPU; torch's global generator is left as it was."""
        with torch.device("cpu"), torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return self.make(seed)


def backbone(name: str) -> Backbone:
    """The kind of that name. Raises UserError for one that is not in the registry."""
    if name not in BACKBONES:
        raise UserError(f"unknown backbone {name!r}: choose one of {', '.join(BACKBONES)}")
    found: Backbone = load(BACKBONES[name])
    return found
