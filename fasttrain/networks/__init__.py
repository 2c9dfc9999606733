"""U-Nets and their preconditioning, under the parameter names of the published checkpoints.

`EfficientNetLite`, the frozen feature network, is in `fasttrain.networks.efficientnet_lite`.
"""

from fasttrain.networks.dhariwal_unet import DhariwalUNet
from fasttrain.networks.preconditioning import (
    EDMPrecond,
    OneStepPrecond,
    Precond,
    PrecondName,
    VEPrecond,
    VPPrecond,
    build_network,
)
from fasttrain.networks.song_unet import SongUNet

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
