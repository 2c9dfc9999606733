"""A recipe's networks without weights or with random ones, to count what they take."""

from __future__ import annotations

from typing import Any

import torch

from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.build import new_discriminator
from fasttrain.models.build import new_network
from fasttrain.models.freezing import select_trained
from fasttrain.settings import FinetuneSettings

__all__ = ["discriminator_of", "generator_of"]


def generator_of(settings: FinetuneSettings, device: str = "meta") -> Any:
    """The recipe's generator, frozen as in training; on the meta device it takes no memory."""
    with torch.device(device):
        network = new_network("one_step", settings.network)
    select_trained(network, settings)
    return network.eval()


def discriminator_of(settings: FinetuneSettings) -> ProjectedDiscriminator:
    """The recipe's discriminator, with untrained feature networks; its copy of the diffusion model,
    if it has one, is on the meta device."""
    backbones = tuple(
        backbone.model_copy(update={"weights": "random"})
        for backbone in settings.discriminator.backbones
    )
    wanted = settings.discriminator.model_copy(
        update={"backbones": backbones, "class_embedding": "random"}
    )
    settings = settings.model_copy(update={"discriminator": wanted})
    with torch.device("meta"):
        own = new_network("edm", settings.network)
    return new_discriminator(settings, torch.device("cpu"), fresh=True, own=own)
