"""The projected discriminator: frozen feature networks, random projectors, trained heads."""

from fasttrain.discriminator.heads import Head, Heads
from fasttrain.discriminator.norms import GhostBatchNorm, SpectralConv2d
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
