"""Which parameters of the generator train: D2O-F's freezing, by parameter name, and its audit.

"Revisiting Diffusion Models" (Zheng and Yang, arXiv 2506.09376) keeps most convolutions of the
pre-trained U-Net as they are and trains norms, embeddings and the other small layers. A parameter
(weight or bias) is frozen when its name contains one of `SCOPES`, so that it sits in a block of the
U-Net, and one of the level's tokens:

    level   frozen inside the blocks                     trains (CIFAR-10 NCSN++)
    "none"  nothing                                      100 %
    1       3x3 convolutions, attention's output         15.6 %
    2       and attention's queries, keys, values        13.5 %
    3       and the skip paths' 1x1 convolutions          9.5 %

The decision is made once, before the optimizer and any engine see the parameters. Names are those
of a preconditioner or U-Net of `fasttrain.models.networks`, for example
`model.enc.32x32_block0.conv0.weight`: ask about the network itself, not about a wrapper that
lengthens its names.

Use:

    apply_freezing(generator, level=1)
    print(audit(generator).table())
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from torch import nn

from fasttrain.settings.base import FreezeLevel

__all__ = ["LEVELS", "SCOPES", "apply_freezing", "is_frozen"]


SCOPES = ("block", "up", "down", "in")
"""A frozen parameter's name contains one of these."""

LEVELS: Mapping[FreezeLevel, tuple[str, ...]] = MappingProxyType(
    {
        "none": (),
        1: ("conv", "proj"),
        2: ("conv", "proj", "qkv"),
        3: ("conv", "proj", "qkv", "skip"),
    }
)
"""And one of the level's tokens."""


def is_frozen(name: str, level: FreezeLevel) -> bool:
    """Whether the parameter of this dotted name is frozen at `level`.

    Raises:
        ValueError: an unknown level.
    """
    if level not in LEVELS:
        known = ", ".join(str(known) for known in LEVELS)
        raise ValueError(f"freezing level {level!r} is unknown: choose one of {known}")
    inside = any(scope in name for scope in SCOPES)
    return inside and any(token in name for token in LEVELS[level])


def apply_freezing(module: nn.Module, level: FreezeLevel) -> None:
    """Set `requires_grad` of every parameter of `module` to what `level` says, both ways."""
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(not is_frozen(name, level))
