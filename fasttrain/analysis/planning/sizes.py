"""Sizes of a recipe's networks, counted on networks without weights or with random ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.build import new_discriminator
from fasttrain.models.build import new_network
from fasttrain.models.freezing import select_trained
from fasttrain.settings import FinetuneSettings

__all__ = ["Sizes", "discriminator_of", "generator_of", "sizes_of"]


@dataclass(frozen=True)
class Sizes:
    """Elements of each trained and each frozen parameter, in the optimizer's order, and the bytes
    of the saved buffers."""

    trained: tuple[int, ...]
    frozen: tuple[int, ...] = ()
    buffers: int = 0

    @property
    def trainable(self) -> int:
        return sum(self.trained)

    @property
    def total(self) -> int:
        return sum(self.trained) + sum(self.frozen)


def sizes_of(module: nn.Module) -> Sizes:
    """Count a module's parameters by their present `requires_grad`."""
    parameters = list(module.parameters())
    saved = module.state_dict()
    return Sizes(
        trained=tuple(p.numel() for p in parameters if p.requires_grad),
        frozen=tuple(p.numel() for p in parameters if not p.requires_grad),
        buffers=sum(bytes_of(b) for name, b in module.named_buffers() if name in saved),
    )


def bytes_of(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


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
