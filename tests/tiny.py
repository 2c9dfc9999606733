"""Overrides that make the digits' recipes small: whole runs in seconds."""

from __future__ import annotations

__all__ = ["DISCRIMINATOR", "NETWORK"]

NETWORK = ["network.model_channels=16", "network.num_blocks=1"]

DISCRIMINATOR = [
    "discriminator.backbones=[{name: lite0, resolution: 32}]",
    "discriminator.resolutions=[32, 16]",
    "discriminator.width=32",
    "discriminator.channels=8",
]
