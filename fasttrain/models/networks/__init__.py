"""Networks and their preconditioning, under the parameter names of the published checkpoints.

Networks are found by their names in `fasttrain.settings.registry`; each says of itself what others
need (`fasttrain.models.networks.network`).

`EfficientNetLite`, the frozen feature network, is in `fasttrain.models.features.efficientnet_lite`.
"""

from fasttrain.models.networks.preconditioning import (
    EDMPrecond,
    OneStepPrecond,
    Precond,
    PrecondName,
    VEPrecond,
    VPPrecond,
    build_network,
)

__all__ = [
    "EDMPrecond",
    "OneStepPrecond",
    "Precond",
    "PrecondName",
    "VEPrecond",
    "VPPrecond",
    "build_network",
]
