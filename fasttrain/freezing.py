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
of a `fasttrain.networks` preconditioner or U-Net, e.g. `model.enc.32x32_block0.conv0.weight`: ask
about the network itself, not about a wrapper that lengthens its names.

Use:

    apply_freezing(generator, level=1)
    print(audit(generator).table())
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any

from torch import nn

from fasttrain.settings import FreezeLevel

__all__ = [
    "LEVELS",
    "SCOPES",
    "AuditRow",
    "FreezingAudit",
    "apply_freezing",
    "audit",
    "is_frozen",
]

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


@dataclass(frozen=True)
class AuditRow:
    """Parameters of one module type: how many numbers, and how many of them train."""

    type: str
    parameters: int
    trainable: int

    @property
    def trainable_fraction(self) -> float:
        return self.trainable / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class FreezingAudit:
    """What trains in a network, by module type, in the order the types first appear."""

    rows: tuple[AuditRow, ...]

    @property
    def total(self) -> AuditRow:
        parameters = sum(row.parameters for row in self.rows)
        return AuditRow("total", parameters, sum(row.trainable for row in self.rows))

    @property
    def trainable_fraction(self) -> float:
        """Trainable numbers over all numbers, 0 to 1."""
        return self.total.trainable_fraction

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the totals and `rows`, a dict a module type."""
        total = self.total
        return {
            "parameters": total.parameters,
            "trainable": total.trainable,
            "trainable_fraction": total.trainable_fraction,
            "rows": [
                {**asdict(row), "trainable_fraction": row.trainable_fraction} for row in self.rows
            ],
        }

    def table(self) -> str:
        """The audit as aligned plain text, the total last."""
        cells = [("module type", "parameters", "trainable", "share")]
        for row in (*self.rows, self.total):
            share = f"{100 * row.trainable_fraction:.2f} %"
            cells.append((row.type, f"{row.parameters:,}", f"{row.trainable:,}", share))
        widths = [max(len(line[column]) for line in cells) for column in range(4)]
        lines = [
            "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
            for line in cells
        ]
        rule = "-" * len(lines[0])
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


_RESOLUTION = re.compile(r"^\d+x\d+_")


def _module_type(name: str) -> str:
    """`model.enc.32x32_block0.conv0.weight` -> `block.conv`; `model.dec.32x32_aux_conv.bias` ->
    `dec.aux_conv`; `model.map_layer1.weight` -> `map_layer`."""
    path = name.split(".")[:-1]
    if path and path[0] == "model":
        path = path[1:]
    in_block = any(_RESOLUTION.match(part) for part in path[:-1])
    path = ["block", path[-1]] if in_block else path
    return ".".join(_RESOLUTION.sub("", part).rstrip("0123456789") for part in path) or name


def audit(module: nn.Module) -> FreezingAudit:
    """Count `module`'s parameters by module type, as `requires_grad` stands; works on the meta
    device. Parameters that occur twice count once; buffers do not count."""
    counts: dict[str, tuple[int, int]] = {}
    for name, parameter in module.named_parameters():
        kind = _module_type(name)
        parameters, trainable = counts.get(kind, (0, 0))
        size = parameter.numel()
        counts[kind] = (parameters + size, trainable + size * parameter.requires_grad)
    return FreezingAudit(tuple(AuditRow(kind, *count) for kind, count in counts.items()))
