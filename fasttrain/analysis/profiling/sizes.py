"""The network to profile: the recipe's on a GPU, a small one of the same type on a CPU."""

from __future__ import annotations

import math

import torch

from fasttrain.models.build import new_network
from fasttrain.models.features.backbone import backbone
from fasttrain.models.features.weights import find_weights
from fasttrain.settings import FinetuneSettings
from fasttrain.system.errors import UserError

__all__ = ["fitted", "parameters_of"]

MOST_PARAMETERS = 2_000_000
"""Largest network that a CPU measures at full size, in parameters."""
CPU_RESOLUTION = 64
"""Largest resolution of a discriminator that a CPU measures."""
CPU_BATCH, GPU_BATCH = 4, 128


def parameters_of(settings: FinetuneSettings) -> int:
    with torch.device("meta"):
        network = new_network("one_step", settings.network)
    return sum(parameter.numel() for parameter in network.parameters())


def fitted(
    settings: FinetuneSettings, device: torch.device, batch: int | None = None
) -> tuple[FinetuneSettings, list[str]]:
    """The settings to measure, with one micro-batch of one process as an iteration, and a line for
    each deviation from the recipe."""
    settings, weights = _with_weights(settings)
    notes: list[str] = []
    if device.type != "cuda":
        if _too_large(settings):
            settings, note = _shrunk(settings)
            notes.append(note)
        batch = batch or min(settings.batch, CPU_BATCH)
    batch = batch or settings.micro_batch or min(settings.batch, GPU_BATCH)
    group = math.gcd(settings.discriminator.norm_group, batch)
    if group != settings.discriminator.norm_group:
        notes.append(
            f"batch norm of the heads over {group} images instead of "
            f"{settings.discriminator.norm_group}, to divide the batch of {batch}"
        )
    discriminator = settings.discriminator.model_copy(update={"norm_group": group})
    changes = {"batch": batch, "micro_batch": None, "discriminator": discriminator}
    return settings.model_copy(update=changes), notes + weights


def _with_weights(settings: FinetuneSettings) -> tuple[FinetuneSettings, list[str]]:
    """Random features in place of missing pretrained ones: they take the same time."""
    backbones, missing = [], []
    for wanted in settings.discriminator.backbones:
        if wanted.weights != "random":
            try:
                find_weights(backbone(wanted.name).published, wanted.weights)
            except UserError:
                missing.append(wanted.name)
                wanted = wanted.model_copy(update={"weights": "random"})
        backbones.append(wanted)
    if not missing:
        return settings, []
    discriminator = settings.discriminator.model_copy(update={"backbones": tuple(backbones)})
    note = (
        f"no weights of {', '.join(missing)} here: random ones are used, which take the same time"
    )
    return settings.model_copy(update={"discriminator": discriminator}), [note]


def _too_large(settings: FinetuneSettings) -> bool:
    largest = max(backbone.resolution for backbone in settings.discriminator.backbones)
    return parameters_of(settings) > MOST_PARAMETERS or largest > CPU_RESOLUTION


def _shrunk(settings: FinetuneSettings) -> tuple[FinetuneSettings, str]:
    """The same architecture, conditioning, levels and attention, with few channels."""
    before, old = parameters_of(settings), settings.network
    resolution = min(old.img_resolution, max(16, 2 ** len(old.channel_mult)))
    network = old.model_copy(
        update={
            "model_channels": min(old.model_channels, 32),
            "num_blocks": 1,
            "img_resolution": resolution,
        }
    )
    backbones = tuple(
        backbone.model_copy(update={"resolution": min(backbone.resolution, CPU_RESOLUTION)})
        for backbone in settings.discriminator.backbones
    )
    # The published 128, 64, 32, 16 are for maps of 224 px; at 64 px the smallest map has no head.
    discriminator = settings.discriminator.model_copy(
        update={"backbones": backbones, "resolutions": (64, 32, 16)}
    )
    small = settings.model_copy(update={"network": network, "discriminator": discriminator})
    changes = [
        f"{getattr(network, name)} {what} instead of {getattr(old, name)}"
        for name, what in (
            ("model_channels", "channels"),
            ("num_blocks", "block a level"),
            ("img_resolution", "px"),
        )
        if getattr(network, name) != getattr(old, name)
    ]
    changes.append(f"discriminator at {backbones[0].resolution} px")
    return small, (
        f"NOT THE RECIPE'S SIZE: on a CPU this is a small {old.model_type} of "
        f"{parameters_of(small):,} parameters instead of {before:,} ({', '.join(changes)}). It "
        "shows that the measurement works; its numbers say nothing about a GPU"
    )
