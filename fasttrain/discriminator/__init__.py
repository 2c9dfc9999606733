"""The projected discriminator: frozen feature networks, random projectors, trained heads."""

from fasttrain.discriminator.heads import GhostBatchNorm, Head, Heads, SpectralConv2d
from fasttrain.discriminator.projected import ProjectedDiscriminator
from fasttrain.discriminator.projector import Projector

__all__ = [
    "GhostBatchNorm",
    "Head",
    "Heads",
    "ProjectedDiscriminator",
    "Projector",
    "SpectralConv2d",
]
