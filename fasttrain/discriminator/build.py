"""The discriminator that the settings describe."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.class_means import class_features
from fasttrain.discriminator.own import OWN, OwnFeatures
from fasttrain.discriminator.peers import Peers
from fasttrain.models.build import activation_dtype, new_network
from fasttrain.models.features.network import build_features
from fasttrain.settings import AdversarialSettings, BackboneSettings
from fasttrain.system.errors import UserError

__all__ = ["new_discriminator"]


def new_discriminator(
    settings: AdversarialSettings,
    device: torch.device,
    *,
    fresh: bool,
    peers: Peers | None = None,
    own: Any = None,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> ProjectedDiscriminator:
    """The projected discriminator that the settings describe.

    fresh: initialise the class embeddings as in the settings; False if a checkpoint is loaded next.
    peers: processes that share batch norm groups with this one.
    own: the diffusion model that the generator began as, for the backbone `self`; default: one with
        random weights, for measurements.
    decode: from latents to images.

    Raises UserError for a network that has nothing to look at.
    """
    wanted = settings.discriminator
    label_dim = settings.network.label_dim if wanted.conditional else 0

    def features_of(backbone: BackboneSettings) -> Any:
        if backbone.name != OWN:
            return build_features(
                backbone.name, backbone.resolution, weights=backbone.weights, seed=settings.seed
            )
        network = own
        if own is None:
            with device:
                network = new_network("edm", settings.network)
        try:
            return OwnFeatures(network, backbone.noise, settings.seed, backbone.train)
        except ValueError as error:
            raise UserError(f"discriminator.backbones: {error}") from None

    if settings.latents is not None and decode is None:
        seen = next((b.name for b in wanted.backbones if b.name != OWN), None)
        if seen is not None:
            raise UserError(
                f"discriminator.backbones: {seen} sees decoded latents, which is not measured or "
                f"planned; only the backbone {OWN} is"
            )
    features = [features_of(backbone) for backbone in wanted.backbones]
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
        decode=decode,
        peers=peers,
    ).to(device)
    discriminator.precision = activation_dtype(wanted, device)
    return discriminator
