"""The audit of a network's trained parameters, from the settings alone: no data, no weights, the
network on the meta device."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from fasttrain.models.build import new_network
from fasttrain.models.freezing import apply_freezing
from fasttrain.settings import RunSettings

__all__ = ["AuditRow", "FreezingAudit", "audit", "audit_of"]


def audit_of(settings: RunSettings) -> FreezingAudit:
    """The freezing audit of the settings' U-Net, built on the meta device."""
    with torch.device("meta"):
        network = new_network("edm", settings.network)
    apply_freezing(network.model, settings.freezing)
    return audit(network.model)


@dataclass(frozen=True)
class AuditRow:
    """Parameters of one module type: their number, and the number of trained ones."""

    type: str
    parameters: int
    trainable: int

    @property
    def trainable_fraction(self) -> float:
        return self.trainable / self.parameters if self.parameters else 0.0


@dataclass(frozen=True)
class FreezingAudit:
    """Trained parameters of a network by module type, in the order of first appearance."""

    rows: tuple[AuditRow, ...]

    @property
    def total(self) -> AuditRow:
        parameters = sum(row.parameters for row in self.rows)
        return AuditRow("total", parameters, sum(row.trainable for row in self.rows))

    @property
    def trainable_fraction(self) -> float:
        """Trained parameters over all parameters, 0 to 1."""
        return self.total.trainable_fraction

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON: the totals and `rows`, a dict for each module type."""
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
