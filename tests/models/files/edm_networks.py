"""EDM's published configurations, narrow, and a small network."""

from __future__ import annotations

from typing import Any

import torch

from fasttrain.models.networks import Precond, build_network

DDPM: dict[str, Any] = {
    "model_channels": 8,
    "channel_mult": (2, 2, 2),
    "num_blocks": 4,
    "attn_resolutions": (16,),
    "dropout": 0.13,
    "augment_dim": 9,
    "embedding_type": "positional",
    "encoder_type": "standard",
    "decoder_type": "standard",
    "channel_mult_noise": 1,
    "resample_filter": (1, 1),
}
NCSN: dict[str, Any] = {
    **DDPM,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1),
}
LARGE = {"channel_mult": (1, 2, 2, 2), "dropout": 0.05}
ADM = {"model_channels": 8, "channel_mult": (1, 2, 3, 4)}
PUBLISHED: dict[str, tuple[str, int, int, dict[str, Any]]] = {
    "edm-cifar10-32x32-uncond-vp": ("SongUNet", 32, 0, DDPM),
    "edm-cifar10-32x32-cond-vp": ("SongUNet", 32, 10, DDPM),
    "edm-cifar10-32x32-uncond-ve": ("SongUNet", 32, 0, NCSN),
    "edm-cifar10-32x32-cond-ve": ("SongUNet", 32, 10, NCSN),
    "edm-ffhq-64x64-uncond-vp": ("SongUNet", 64, 0, DDPM | LARGE),
    "edm-ffhq-64x64-uncond-ve": ("SongUNet", 64, 0, NCSN | LARGE),
    "edm-imagenet-64x64-cond-adm": ("DhariwalUNet", 64, 1000, ADM),
}
"""The published configurations, narrow: type, resolution, classes and the U-Net's arguments."""
SMALL = {**DDPM, "model_channels": 4, "channel_mult": (1, 2), "num_blocks": 1}


def network_of(
    kind: str, resolution: int, label_dim: int, arguments: dict[str, Any], precond: Any = "edm"
) -> Precond:
    torch.manual_seed(0)
    return build_network(precond, kind, resolution, 3, label_dim, **arguments).eval()


def small() -> Precond:
    return network_of("SongUNet", 8, 0, SMALL)
