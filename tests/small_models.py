"""Model files of small networks with random weights, none of which is zero, so that every one of
them counts: no training is needed to have a model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain.models.files.model_file import ModelInfo
from fasttrain.models.networks import build_network
from fasttrain.models.networks.registry import arguments_of
from fasttrain.settings import NetworkSettings
from fasttrain.system.tensors import write_tensors

__all__ = ["ADM", "NCSNPP", "PLAIN", "diffusers_unet", "small_network", "write_model"]

PLAIN: dict[str, Any] = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 10,
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (4,),
}
NCSNPP = PLAIN | {
    "img_channels": 3,
    "label_dim": 0,
    "embedding_type": "fourier",
    "encoder_type": "residual",
    "channel_mult_noise": 2,
    "resample_filter": (1, 3, 3, 1),
}
ADM = PLAIN | {"model_type": "DhariwalUNet", "img_channels": 3, "model_channels": 32}


@torch.no_grad()
def small_network(settings: NetworkSettings, *, seed: int = 0) -> Any:
    torch.manual_seed(seed)
    network = build_network("one_step", **arguments_of(settings))
    for parameter in network.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5)
        else:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.1)
    return network.eval().requires_grad_(False)


def write_model(path: Path, network: dict[str, Any], **metadata: str) -> Path:
    """As `fasttrain export` writes it; a one-step generator unless the metadata say otherwise."""
    settings = NetworkSettings(**network)
    task = "pretrain" if metadata.get("task") == "pretrain" else "finetune"
    sigma = 80.0 if task == "finetune" else None
    info = ModelInfo(task, settings, sigma, path.name, images=320)
    write_tensors(path, small_network(settings).state_dict(), info.metadata() | metadata)
    return path


def diffusers_unet(**more: Any) -> Any:
    """A UNet2DModel of diffusers on 8x8, without attention. Skips the test without diffusers."""
    return pytest.importorskip("diffusers").UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
        **more,
    )
