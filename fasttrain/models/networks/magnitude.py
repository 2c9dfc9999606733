"""Layers that keep the magnitude of what goes through them (Karras et al., "Analyzing and
Improving the Training Dynamics of Diffusion Models", arXiv 2312.02696, appendix B), under EDM2's
names.

With unit variance in, each gives unit variance out:

    weight    w / (eps + |w| / sqrt(n)),  then  / sqrt(n),   n inputs of an output     (equation 47)
    silu      silu(x) / 0.596                                                          (81)
    sum       ((1 - t) a + t b) / sqrt((1 - t)^2 + t^2)                                (88)
    cat       sqrt((Na + Nb) / ((1 - t)^2 + t^2)) [(1 - t) a / sqrt(Na), t b / sqrt(Nb)]   (103)
    pixel     x / (eps + |x| / sqrt(C)) over the channels of a pixel                   (30)

Weights are normalised at use, so that what their length is makes no difference; while they train,
`force_normalised` brings them back to length sqrt(n) after a step, which keeps the learning rate
what it says (equation 67).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasttrain.models.networks.layers import layout_of, normal_values

__all__ = [
    "EPS",
    "MPConv",
    "MPFourier",
    "force_normalised",
    "forced",
    "mp_cat",
    "mp_silu",
    "mp_sum",
    "normalise",
]

EPS = 1e-4
_SILU = 0.596
"""Deviation of silu of a standard normal."""


def normalise(x: Tensor, dim: int | None = None) -> Tensor:
    """To mean square 1 over `dim` (None: over all but the first), in the dtype of x; the norm in
    float32."""
    dims = list(range(1, x.dim())) if dim is None else [dim]
    norm = torch.linalg.vector_norm(x, dim=dims, keepdim=True, dtype=torch.float32)
    norm = torch.add(EPS, norm, alpha=math.sqrt(norm.numel() / x.numel()))
    return x / norm.to(x.dtype)


def mp_silu(x: Tensor) -> Tensor:
    return F.silu(x) / _SILU


def mp_sum(a: Tensor, b: Tensor, t: float) -> Tensor:
    return a.lerp(b, t) / math.hypot(1 - t, t)


def mp_cat(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Side by side in the channels, with weights 1 - t and t whatever their widths."""
    first, second = a.shape[1], b.shape[1]
    scale = math.sqrt(first + second) / math.hypot(1 - t, t)
    return torch.cat(
        [a * (scale * (1 - t) / math.sqrt(first)), b * (scale * t / math.sqrt(second))], dim=1
    )


class MPFourier(nn.Module):
    """[N] -> [N, channels] float32: cosines of random frequencies and phases that do not train."""

    freqs: Tensor
    phases: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", normal_values(channels, scale=2 * math.pi))
        phases = torch.empty(channels)
        if not phases.is_meta:
            phases.uniform_().mul_(2 * math.pi)
        self.register_buffer("phases", phases)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x.float(), self.freqs.float()) + self.phases.float()
        return angles.cos() * math.sqrt(2)


class MPConv(nn.Module):
    """A convolution (`kernel` 1 or 3, same padding) or a linear map (0) of normalised weights,
    without bias, times a gain.

    heads: where the output is queries, keys and values of that many: its channels, (head, d, j) in
    the parameter, come out as (j, head, d), which `attention` reads in place.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int = 0, *, heads: int = 0
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        size = (kernel, kernel) if kernel else ()
        self.weight = nn.Parameter(normal_values(out_channels, in_channels, *size))

    def _normalised(self) -> Tensor:
        weight = self.weight.float()  # read once: an adapter computes it
        weight = normalise(weight) / math.sqrt(weight[0].numel())
        if not self.heads:
            return weight
        size = self.out_channels // (3 * self.heads)
        return weight.unflatten(0, (self.heads, size, 3)).movedim(2, 0).flatten(0, 2)

    def forward(self, x: Tensor, gain: Tensor | None = None) -> Tensor:
        """x [N, in_channels] or [N, in_channels, H, W] -> the same with `out_channels`, in its
        dtype. gain: [1]."""
        weight = self._normalised()
        if gain is not None:  # in float32, as the weight is: a gain of half precision rounds it
            weight = weight * gain.float()
        layout = layout_of(x) if weight.dim() == 4 else torch.contiguous_format
        weight = weight.to(x.dtype, memory_format=layout)
        if weight.dim() == 2:
            return F.linear(x, weight)
        return F.conv2d(x, weight, padding=weight.shape[-1] // 2)


@torch.no_grad()
def force_normalised(module: nn.Module) -> None:
    """Bring the weights that train back to mean square 1, in place."""
    for weight in forced(module):
        weight.copy_(normalise(weight))


def forced(module: nn.Module) -> list[nn.Parameter]:
    """The weights that `force_normalised` changes; none of those that have an adapter."""
    layers = [layer for layer in module.modules() if isinstance(layer, MPConv)]
    weights = [weight for layer in layers for weight in layer.parameters(recurse=False)]
    return [weight for weight in weights if weight.requires_grad]
