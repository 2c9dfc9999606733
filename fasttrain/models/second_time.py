"""A second time for a network that was trained with one: the length of an interval, of which it has
to give the average velocity (MeanFlow, `fasttrain.training.objectives.meanflow`). With tau = t - r
in 0 ... 1,

    y = W x + b + e(tau),        e(tau) = W2 silu(W1 sines(tau) + b1) + b2,

in one layer of the path that the noise level takes (`Network.noise_layer`). W2 and b2 are zero at
the start, so the network begins as it was, bit for bit.

The layer is called as before, and without an interval it takes the whole one, that of a one-step
generator. That never changes, so `folded` makes e a part of the bias: what is sampled, exported or
fine-tuned on is an ordinary network of the same architecture.

    second = add_second_time(network.model, whole=80 / 81, seed=0)
    with second.told(tau):                       # [N]
        images = network(x, sigma, class_labels)
    weights = folded(network.state_dict())
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.models.beside import split
from fasttrain.models.networks.layers import PositionalEmbedding
from fasttrain.models.networks.network import Network
from fasttrain.system.errors import UserError

__all__ = ["SecondTime", "add_second_time", "check_second_time", "folded"]

SECOND = ".second."
"""Part of the names of its tensors."""
PARTS = ("whole", "inner", "inner_bias", "outer", "outer_bias")
SINES = PositionalEmbedding(32, max_positions=100)
RATE = 10.0
"""The fastest of the sines, in radians of a whole trajectory: its derivative with respect to the
time is part of the objective, and fast sines would drown it."""


class SecondTime(nn.Module):
    """e(tau) of the module docstring, added to a layer's output [N, outputs].

    whole: the interval of a one-step generator.
    """

    whole: Tensor

    def __init__(self, bias: Tensor, whole: float, generator: torch.Generator) -> None:
        super().__init__()
        outputs = len(bias)
        drawn = torch.randn(outputs, SINES.channels, generator=generator) * SINES.channels**-0.5
        self.register_buffer("whole", torch.tensor(whole, device=bias.device))
        self.inner = nn.Parameter(drawn.to(bias.device))
        self.inner_bias = nn.Parameter(torch.zeros(outputs, device=bias.device))
        self.outer = nn.Parameter(torch.zeros(outputs, outputs, device=bias.device))
        self.outer_bias = nn.Parameter(torch.zeros(outputs, device=bias.device))
        self.interval: Tensor | None = None

    @contextmanager
    def told(self, interval: Tensor) -> Iterator[None]:
        """Context in which the network sees these intervals, float32 [N]."""
        self.interval = interval
        try:
            yield
        finally:
            self.interval = None

    def forward(self, y: Tensor) -> Tensor:
        tau = self.whole.reshape(1) if self.interval is None else self.interval
        own = (self.inner, self.inner_bias, self.outer, self.outer_bias)
        return y + embedded(tau, *own).to(y.dtype)


def embedded(tau: Tensor, inner: Tensor, inner_bias: Tensor, outer: Tensor, last: Tensor) -> Tensor:
    """e(tau), [N, outputs] in the dtype of the weights; tau [N]."""
    sines = SINES(RATE * tau.to(inner.dtype))
    return F.linear(F.silu(F.linear(sines, inner, inner_bias)), outer, last)


def add_second_time(network: Network, whole: float, seed: int) -> SecondTime:
    """Give a network a second time, which trains. The same seed draws the same numbers on every
    process.

    Raises UserError for a network that has no place for it.
    """
    check_second_time(network)
    layer = network.get_submodule(network.noise_layer())
    bias = layer.get_parameter("bias")
    second = SecondTime(bias, whole, torch.Generator().manual_seed(seed))
    layer.second = second
    layer.__class__ = _timed(type(layer))  # type: ignore[arg-type]
    return second


def check_second_time(network: Network) -> None:
    """Raise UserError for a network that has no place for a second time."""
    try:
        network.noise_layer()
    except ValueError as error:
        raise UserError(f"network: {error}") from None


def folded(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Named tensors with e(whole) added to the bias beside it, float32; those of a network with one
    time as they are.

    Raises UserError when its tensors are not complete, or do not fit the layer.
    """
    result, beside = split(weights, SECOND)
    for layer, own in beside.items():
        name = f"{layer}.bias"
        if own.keys() != set(PARTS) or name not in result:
            raise UserError(f"{name}: its second time is not complete: {', '.join(own)}")
        try:
            tau, *rest = (own[part].float() for part in PARTS)
            result[name] = result[name].float() + embedded(tau.reshape(1), *rest)[0]
        except RuntimeError as error:  # of a file that anyone may have written
            why = str(error).splitlines()[0]
            raise UserError(f"{name}: its second time does not fit it: {why}") from None
    return result


@cache
def _timed(kind: Any) -> Any:
    """The class of a layer that adds its second time to its output."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y: Tensor = self.second(kind.forward(self, x))
        return y

    return type(kind.__name__, (kind,), {"forward": forward, "__module__": kind.__module__})
