"""Overrides that make the digits' recipes small: whole runs in seconds."""

from __future__ import annotations

__all__ = ["DISCRIMINATOR", "FLOAT32", "NETWORK", "ONE_LEVEL"]

NETWORK = ["network.model_channels=16", "network.num_blocks=1"]
ONE_LEVEL = [*NETWORK, "network.channel_mult=[1]", "network.attn_resolutions=[8]"]
"""Half the layers, each kind of them but resampling, for what is about processes and files: at this
size an iteration costs as much as its number of layers."""

DISCRIMINATOR = [
    "discriminator.backbones=[{name: lite0, resolution: 32}]",
    "discriminator.resolutions=[32, 16]",
    "discriminator.width=32",
    "discriminator.channels=8",
]

FLOAT32 = ["precision=float32", "discriminator.precision=float32"]
"""Of fine-tunings that are compared: `auto` is bfloat16 on some CPUs, and tolerances are float32's.
The first is enough for pre-training."""
