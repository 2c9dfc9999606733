"""The layers of the EDM family of U-Nets (SongUNet, DhariwalUNet).

Parameter names, order and initial distributions are those of the published checkpoints, so that
their state dicts load as they are. Two rules hold everywhere:

- parameters keep their own dtype (float32 while they train); a layer casts them to the dtype and
  memory format of its activations at use, so bfloat16 activations need no second copy of the
  network. No tensor derived from a weight is cached: a change of the weight cannot be detected
  reliably (`weight.data.mul_()` leaves no trace), and a copy costs microseconds;
- memory-bound operations are fused, in `fasttrain_kernels`: group norm with the adaptive scale and
  shift and SiLU (statistics in float32), attention, residual sums, resampling.
  `fasttrain_kernels.using` selects the implementation.

The residual block, with e the embedding of the noise level and labels (Karras et al., "Elucidating
the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364, appendix F):

    h = conv0(silu(norm0(x)))
    h = silu(norm1(h + affine(e)))  or, adaptive,  silu(norm1(h) * (1 + scale(e)) + shift(e))
    y = (conv1(dropout(h)) + skip(x)) * skip_scale
    y = (proj(attention(qkv(norm2(y)))) + y) * skip_scale          where the block has attention

With the Triton kernels the biases of conv0, conv1, skip and proj are added by the op that reads the
convolution's output anyway, and a residual sum also writes the partial statistics that the next
norm needs. They are passed along with the activation, or None.

Use: `y, statistics = UNetBlock(64, 128, emb_channels=256, down=True)(x, emb)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasttrain_kernels import (
    group_norm,
    in_channels_last,
)

__all__ = ["FourierEmbedding", "GroupNorm", "Init", "Linear", "PositionalEmbedding"]


InitMode = Literal["xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal"]


@dataclass(frozen=True)
class Init:
    """Initial distribution of a layer: `mode` at unit gain, times `weight` for the weight and
    times `bias` for the bias (0: zeros)."""

    mode: InitMode = "kaiming_normal"
    weight: float = 1.0
    bias: float = 0.0

    def draw(self, shape: Sequence[int], fan_in: int, fan_out: int, gain: float) -> nn.Parameter:
        """A float32 parameter of `shape` from torch's default generator and device."""
        if gain == 0:
            return nn.Parameter(torch.zeros(*shape))
        fans = fan_in if self.mode.startswith("kaiming") else (fan_in + fan_out) / 2
        values = torch.empty(*shape)
        if values.is_meta:  # see `normal_values`
            return nn.Parameter(values)
        if self.mode.endswith("uniform"):
            values.uniform_().mul_(2).sub_(1).mul_(math.sqrt(3 / fans))
        else:
            values.normal_().mul_(math.sqrt(1 / fans))
        return nn.Parameter(values.mul_(gain))


def normal_values(*shape: int, scale: float = 1.0) -> Tensor:
    """Float32 values from N(0, scale^2), on the default device. On the meta device there are none
    to draw, and drawing there would import the compiler, 2 s of a dry run."""
    values = torch.empty(*shape)
    return values if values.is_meta else values.normal_().mul_(scale)


def cast(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


def layout_of(x: Tensor) -> torch.memory_format:
    return torch.channels_last if in_channels_last(x) else torch.contiguous_format


class Linear(nn.Module):
    """`x [N, in] -> x W^T + b [N, out]`, in the dtype of x."""

    def __init__(
        self, in_features: int, out_features: int, *, bias: bool = True, init: Init = Init()
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        fans = (in_features, out_features)
        self.weight = init.draw((out_features, in_features), *fans, init.weight)
        self.bias = init.draw((out_features,), *fans, init.bias) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype), cast(self.bias, x))


class GroupNorm(nn.Module):
    """Group norm over `groups`, or as EDM's networks choose them (0) `min(32, channels // 4)`,
    fused with what surrounds it. Where that rule's number does not divide the channels (in no
    published network), the next smaller one that does.

    `norm(x, silu=..., shift_in=..., scale=..., shift=..., statistics=...)`: see
    `fasttrain_kernels.group_norm` for the formula; x [N, C, H, W], shifts and scale [N, C].
    """

    def __init__(self, channels: int, *, groups: int = 0, eps: float = 1e-5) -> None:
        if groups and channels % groups:
            raise ValueError(f"{channels} channels do not split into {groups} groups of a norm")
        super().__init__()
        most = max(1, min(32, channels // 4))
        rule = next(number for number in range(most, 0, -1) if channels % number == 0)
        self.groups = groups or rule
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, *, silu: bool = False, **options: Tensor | None) -> Tensor:
        y: Tensor = self._norm(x, silu, **options)
        return y

    def forked(
        self, x: Tensor, *, silu: bool = False, **options: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The norm, and x for what else reads it: see `group_norm`'s fork."""
        y, x = self._norm(x, silu, fork=True, **options)
        return y, x

    def _norm(self, x: Tensor, silu: bool, **options: Any) -> Any:
        return group_norm(
            x,
            self.weight,
            self.bias,
            groups=self.groups,
            eps=self.eps,
            activation="silu" if silu else "none",
            **options,
        )


class PositionalEmbedding(nn.Module):
    """Noise labels [N] -> [N, channels]: cosines, then sines, at geometric frequencies from 1 to
    1 / `max_positions` (with `endpoint` the last frequency is exactly that)."""

    def __init__(
        self, channels: int, *, max_positions: int = 10000, endpoint: bool = False
    ) -> None:
        super().__init__()
        self.channels = channels
        self.max_positions = max_positions
        self.endpoint = endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=x.device)
        steps = steps / max(half - self.endpoint, 1)
        angles = torch.outer(x, ((1 / self.max_positions) ** steps).to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)


class FourierEmbedding(nn.Module):
    """Noise labels [N] -> [N, channels]: cosines, then sines, at random Gaussian frequencies of
    deviation `scale`, drawn once and saved as the buffer `freqs` (Tancik et al., 2006.10739)."""

    freqs: Tensor

    def __init__(self, channels: int, *, scale: float = 16.0) -> None:
        super().__init__()
        self.register_buffer("freqs", normal_values(channels // 2, scale=scale))

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x, (2 * math.pi * self.freqs).to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)
