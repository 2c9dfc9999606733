"""The discriminator that the settings describe."""

from __future__ import annotations

import torch

from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.class_means import class_features
from fasttrain.discriminator.peers import Peers
from fasttrain.models.build import activation_dtype
from fasttrain.models.features.network import build_features
from fasttrain.settings import AdversarialSettings

__all__ = ["new_discriminator"]


def new_discriminator(
    settings: AdversarialSettings, device: torch.device, *, fresh: bool, peers: Peers | None = None
) -> ProjectedDiscriminator:
    """The projected discriminator that the settings describe.

    fresh: initialise the class embeddings as in the settings; False if a checkpoint is loaded next.
    peers: processes that share batch norm groups with this one.
    """
    wanted = settings.discriminator
    label_dim = settings.network.label_dim if wanted.conditional else 0
    features = [
        build_features(
            backbone.name, backbone.resolution, weights=backbone.weights, seed=settings.seed
        )
        for backbone in wanted.backbones
    ]
    embedding = None
    if fresh and label_dim and wanted.class_embedding != "random":
        embedding = class_features(settings, device)
    discriminator = ProjectedDiscriminator(
        features,
        label_dim=label_dim,
        norm_group=wanted.norm_group,
        seed=settings.seed,
        cout=wanted.channels,
        resolutions=wanted.resolutions,
        width=wanted.width,
        class_embedding=embedding,
        peers=peers,
    ).to(device)
    discriminator.precision = activation_dtype(wanted, device)
    return discriminator
