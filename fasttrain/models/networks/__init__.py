"""Networks and their preconditioning, under the parameter names of the published checkpoints.

Networks are found by their names in `fasttrain.settings.registry`; each says of itself what others
need (`fasttrain.models.networks.network`).

`EfficientNetLite`, the frozen feature network, is in `fasttrain.models.features.efficientnet_lite`.
"""

from fasttrain.models.networks.preconditioning import (
    Precond,
    PrecondName,
    build_network,
)

__all__ = [
    "Precond",
    "PrecondName",
    "build_network",
]
