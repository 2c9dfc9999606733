"""Adapters: few numbers that train in the place of a layer's weight W, seen as a matrix of outputs
by inputs, which stays as it is.

    lora     W + B A                B [outputs, r] zero at the start, A [r, inputs]
    rotate   R W,  R = (1 - S/2)^-1 (1 + S/2),  S = U V^T - V U^T,  U, V [outputs, r]

LoRA is Hu et al.'s (arXiv 2106.09685). R, the Cayley map of a skew-symmetric S, is orthogonal: it
turns the weights' directions among the outputs and keeps their lengths (distilled weights differ
from the original ones in direction rather than in length, arXiv 2603.08258). With P = [U, -V] and
Q = [V, U], S = P Q^T, and by Woodbury's identity

    R W = W + P (1 - Q^T P / 2)^-1 Q^T W,

which solves 2r equations; V is zero at the start, and R the identity.

A layer that has an adapter is called as before: reading its `weight` computes the adapted one, so
that every kernel, norm of weights and layout that uses it goes on as it is. The layer's own weight
keeps its published name, and the adapter's tensors are `NAME.adapter.*` beside it.

    adapt(network.model, settings.adapt, seed=0)
    weights = merged(network.state_dict())       # full weights, as of a network without adapters
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from fasttrain.models.beside import split
from fasttrain.models.networks.network import Network
from fasttrain.models.second_time import folded
from fasttrain.settings.adapt import AdaptSettings
from fasttrain.system.errors import UserError

__all__ = ["ADAPTER", "LowRank", "Rotation", "adapt", "merged"]

ADAPTER = ".adapter."
"""Part of the names of adapters' tensors."""
USUAL = ("conv", "attention", "mlp")


class LowRank(nn.Module):
    """`lora` of a weight."""

    parts = ("up", "down")

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        outputs, inputs = len(weight), weight[0].numel()
        rank = min(rank, outputs, inputs)
        self.up = _drawn(weight, (outputs, rank), 0.0, generator)
        self.down = _drawn(weight, (rank, inputs), inputs**-0.5, generator)

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, float32, in the shape of `weight`."""
        return low_rank(weight, self.up, self.down)


class Rotation(nn.Module):
    """`rotate` of a weight."""

    parts = ("first", "second")

    def __init__(self, weight: Tensor, rank: int, generator: torch.Generator) -> None:
        super().__init__()
        outputs = len(weight)
        rank = max(1, min(rank, outputs // 2))
        self.first = _drawn(weight, (outputs, rank), 1.0, generator)
        if not weight.is_meta:  # columns of length 1: the solver swaps no rows, and zero stays zero
            self.first.data = torch.linalg.qr(self.first.data).Q.contiguous()
        self.second = _drawn(weight, (outputs, rank), 0.0, generator)

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, float32, in the shape of `weight`."""
        return rotated(weight, self.first, self.second)


def low_rank(weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """W + B A, float32; up [outputs, r], down [r, inputs]."""
    with torch.autocast(weight.device.type, enabled=False):
        return weight.float() + (up @ down).view(weight.shape)


def rotated(weight: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """R W, float32; first, second [outputs, r]: U and V."""
    with torch.autocast(weight.device.type, enabled=False):
        whole = weight.float()
        left = torch.cat([first, -second], dim=1)
        right = torch.cat([second, first], dim=1)
        inner = torch.eye(left.shape[1], device=left.device) - right.T @ left / 2
        turned = left @ torch.linalg.solve(inner, right.T @ whole.flatten(1))
        return whole + turned.view(weight.shape)


ADAPTERS: Mapping[str, type[LowRank | Rotation]] = {"lora": LowRank, "rotate": Rotation}
FORMULAS = {LowRank.parts: low_rank, Rotation.parts: rotated}


def adapt(network: Network, settings: AdaptSettings, seed: int) -> None:
    """Give the layers of the settings' kinds an adapter each, which trains; their own weights do
    not any more. The same seed draws the same numbers on every process.

    Raises UserError when the network has no layers of a kind that the settings name.
    """
    layers: dict[str, nn.Module] = {}
    kinds: dict[str, str] = {}
    for name, module in network.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.dim() > 1 and len(weight) > 1:
            layers[name] = module
            kinds[name] = network.kind_of(f"{name}.weight")
    has = [kind for kind in dict.fromkeys(kinds.values()) if kind]
    wanted: tuple[str, ...] = settings.layers or tuple(kind for kind in USUAL if kind in has)
    for kind in wanted or ("conv",):
        if kind not in has:
            known = ", ".join(kind for kind in has if kind != "ends") or "no kind of layer"
            raise UserError(
                f"adapt.layers: a {type(network).__name__} has no {kind}: it has {known}"
            )
    generator = torch.Generator().manual_seed(seed)
    for name, module in layers.items():
        if kinds[name] in wanted:
            weight = module._parameters["weight"]
            assert weight is not None
            weight.requires_grad_(False)
            module.adapter = ADAPTERS[settings.kind](weight, settings.rank, generator)
            module.__class__ = _adapted(type(module))  # type: ignore[arg-type]


def merged(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors with the adapters' merged into the weights beside them, and a second time into
    its bias, float32; those of a network without either as they are."""
    result, beside = split(folded(weights), ADAPTER)
    for layer, parts in beside.items():
        name = f"{layer}.weight"
        order = next((known for known in FORMULAS if set(known) == parts.keys()), None)
        if order is None or name not in result:
            raise UserError(f"{name} has an adapter of an unknown kind: {', '.join(parts)}")
        try:
            result[name] = FORMULAS[order](result[name], *(parts[part].float() for part in order))
        except RuntimeError as error:  # of a file that anyone may have written
            why = str(error).splitlines()[0]
            raise UserError(f"{name} has an adapter that does not fit it: {why}") from None
    return result


@cache
def _adapted(kind: Any) -> Any:
    """The class of a layer whose `weight` is what its adapter makes of the parameter."""

    def weight(self: Any) -> Tensor:
        return self.adapter(self._parameters["weight"])

    return type(kind.__name__, (kind,), {"weight": property(weight), "__module__": kind.__module__})


def _drawn(
    weight: Tensor, shape: tuple[int, int], deviation: float, generator: torch.Generator
) -> nn.Parameter:
    """Float32 normal numbers where the weight is."""
    if weight.is_meta:
        return nn.Parameter(weight.new_empty(shape, dtype=torch.float32))
    values = torch.randn(shape, generator=generator) * deviation
    return nn.Parameter(values.to(weight.device))
