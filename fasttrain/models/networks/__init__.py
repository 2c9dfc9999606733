"""U-Nets and their preconditioning, under the parameter names of the published checkpoints.

`EfficientNetLite`, the frozen feature network, is in `fasttrain.models.features.efficientnet_lite`.
"""

from fasttrain.models.networks.dhariwal_unet import DhariwalUNet
from fasttrain.models.networks.preconditioning import (
    EDMPrecond,
    OneStepPrecond,
    Precond,
    PrecondName,
    VEPrecond,
    VPPrecond,
    build_network,
)
from fasttrain.models.networks.song_unet import SongUNet

__all__ = [
    "DhariwalUNet",
    "EDMPrecond",
    "OneStepPrecond",
    "Precond",
    "PrecondName",
    "SongUNet",
    "VEPrecond",
    "VPPrecond",
    "build_network",
]
