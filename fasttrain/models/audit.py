"""The audit of a network's trained parameters, from the settings alone: no data, no weights, the
network on the meta device."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from fasttrain.models.adapters import ADAPTER
from fasttrain.models.build import new_network
from fasttrain.models.freezing import select_trained
from fasttrain.models.networks import Precond
from fasttrain.models.networks.network import Network
from fasttrain.models.networks.prediction import Prediction
from fasttrain.settings import RunSettings

__all__ = ["AuditRow", "FreezingAudit", "audit", "audit_of", "start_of"]


def audit_of(settings: RunSettings) -> FreezingAudit:
    """The freezing audit of the settings' U-Net, built on the meta device."""
    with torch.device("meta"):
        network = new_network("edm", settings.network)
    select_trained(network, settings)
    return audit(network.model)


def start_of(settings: RunSettings, sigma: float) -> str:
    """A line on the noise level where a generator's step starts: by how much the preconditioning
    multiplies an error of the network there."""
    prediction = settings.network.prediction
    gain = Prediction(prediction, one_step=True).gain(sigma)
    return (
        f"prediction {prediction.kind}: the step starts at noise level {sigma:g}, where an error "
        f"of the network counts {gain:.3g} times in the image"
    )


@dataclass(frozen=True)
class AuditRow:
    """Parameters of one module type: their number, and the number of trained ones.

    Attributes:
        kind: of its layers (`fasttrain.models.networks.network.KINDS`), or `adapter`; "" where the
            network does not say.
    """

    type: str
    parameters: int
    trainable: int
    kind: str = ""

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
        cells = [("module type", "parameters", "trainable", "share", "kind")]
        for row in (*self.rows, self.total):
            share = f"{100 * row.trainable_fraction:.2f} %"
            cells.append((row.type, f"{row.parameters:,}", f"{row.trainable:,}", share, row.kind))
        widths = [max(len(line[column]) for line in cells) for column in range(5)]
        lines = [
            "  ".join(
                [
                    line[0].ljust(widths[0]),
                    *map(str.rjust, line[1:4], widths[1:4]),
                    line[4].ljust(widths[4]),
                ]
            )
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
    if ADAPTER in name:
        path = [part for part in path if part != "adapter"]
    path = ["block", path[-1]] if in_block else path
    parts = [_RESOLUTION.sub("", part).rstrip("0123456789") for part in path]
    return ".".join(filter(None, parts)) + ADAPTER.rstrip(".") * (ADAPTER in name) or name


def audit(module: nn.Module) -> FreezingAudit:
    """Count `module`'s parameters by module type, as `requires_grad` stands; works on the meta
    device. Parameters that occur twice count once; buffers do not count."""
    counts: dict[tuple[str, str], tuple[int, int]] = {}
    for name, parameter in module.named_parameters():
        row = _module_type(name), _kind(module, name)
        parameters, trainable = counts.get(row, (0, 0))
        size = parameter.numel()
        counts[row] = (parameters + size, trainable + size * parameter.requires_grad)
    return FreezingAudit(
        tuple(AuditRow(type_, *count, kind) for (type_, kind), count in counts.items())
    )


def _kind(module: nn.Module, name: str) -> str:
    if ADAPTER in name:
        return "adapter"
    network = module.model if isinstance(module, Precond) else module
    return network.kind_of(name.removeprefix("model.")) if isinstance(network, Network) else ""
