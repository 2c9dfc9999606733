"""A generator and a discriminator that a CPU profiles in no time."""

from __future__ import annotations

import torch

from fasttrain.analysis.profiling.sizes import fitted
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from tests.tiny import FLOAT32

CPU = torch.device("cpu")
TINY = [
    *FLOAT32,
    "network.model_channels=32",  # at 64 channels there is attention
    "network.channel_mult=[1, 2]",
    "network.label_dim=10",
    "discriminator.width=32",
    "discriminator.channels=8",
]
"""Overrides of `imagenet64-d2o-f`."""


def tiny(*overrides: str, recipe: str = "imagenet64-d2o-f", batch: int = 2) -> FinetuneSettings:
    return fitted(load_settings(recipe, [*TINY, *overrides], FinetuneSettings), CPU, batch)[0]
