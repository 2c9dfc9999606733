"""The layers of the EDM family of U-Nets (SongUNet, DhariwalUNet).

Parameter names, order and initial distributions are those of the published checkpoints, so that
their state dicts load as they are. Two rules hold everywhere:

- parameters keep their own dtype (float32 while they train); a layer casts them to the dtype of its
  activations at use, so bfloat16 activations need no second copy of the network;
- group norm, the adaptive scale and shift, and SiLU are one operation,
  `fasttrain_kernels.group_norm_silu`, whose statistics are float32.

The residual block, with e the embedding of the noise level and labels (Karras et al., "Elucidating
the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364, appendix F):

    h = conv0(silu(norm0(x)))
    h = silu(norm1(h + affine(e)))  or, adaptive,  silu(norm1(h) * (1 + scale(e)) + shift(e))
    y = (conv1(dropout(h)) + skip(x)) * skip_scale
    y = (proj(attention(qkv(norm2(y)))) + y) * skip_scale          where the block has attention

Use: `UNetBlock(64, 128, emb_channels=256, down=True)(x, emb)`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasttrain_kernels import Impl, group_norm_silu

__all__ = [
    "Conv2d",
    "FourierEmbedding",
    "GroupNorm",
    "Init",
    "Linear",
    "PositionalEmbedding",
    "UNetBlock",
    "attention",
]

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
        if self.mode.endswith("uniform"):
            values = torch.rand(*shape).mul_(2).sub_(1).mul_(math.sqrt(3 / fans))
        else:
            values = torch.randn(*shape).mul_(math.sqrt(1 / fans))
        return nn.Parameter(values.mul_(gain))


def _cast(parameter: Tensor | None, x: Tensor) -> Tensor | None:
    return None if parameter is None else parameter.to(x.dtype)


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
        return F.linear(x, self.weight.to(x.dtype), _cast(self.bias, x))


class Conv2d(nn.Module):
    """A convolution (`kernel` 0: none, resampling only; 1 or 3: same padding) that may double
    (`up`) or halve (`down`) the resolution with a separable FIR filter.

    The filter comes before the convolution. With `fused_resample` the zero padding of both is
    applied once, before either (only the border differs), and a downsampling filter runs last.

    Args:
        resample_filter: the 1-d filter's taps, `(1, 1)` or `(1, 3, 3, 1)`; normalised here.
    Raises:
        ValueError: `up` together with `down`.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[int] = (1, 1),
        fused_resample: bool = False,
        init: Init = Init(),
    ) -> None:
        if up and down:
            raise ValueError("a convolution resamples up or down, not both: choose one")
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.up = up
        self.down = down
        self.fused_resample = fused_resample
        self._box = tuple(resample_filter) == (1, 1)
        fans = (in_channels * kernel**2, out_channels * kernel**2)
        shape = (out_channels, in_channels, kernel, kernel)
        self.weight = init.draw(shape, *fans, init.weight) if kernel else None
        self.bias = init.draw((out_channels,), *fans, init.bias) if kernel else None
        taps = torch.tensor(resample_filter, dtype=torch.float32)
        outer = torch.outer(taps, taps).div(taps.sum() ** 2)[None, None]
        self.register_buffer("resample_filter", outer if up or down else None)

    def forward(self, x: Tensor) -> Tensor:
        bias = _cast(self.bias, x)
        if self.weight is None:
            return self._resample(x)
        weight = self.weight.to(x.dtype)
        pad = weight.shape[-1] // 2
        if self.resample_filter is not None and self.fused_resample:
            return self._fused(x, weight, bias, pad)
        return F.conv2d(self._resample(x), weight, bias, padding=pad)

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample_filter is None:
            return x
        if self._box:  # the same sums as the depthwise filter, many times faster on a CPU
            if self.down:
                return F.avg_pool2d(x, 2)
            return F.interpolate(x, scale_factor=2.0, mode="nearest")
        pad = (self.resample_filter.shape[-1] - 1) // 2
        return self._filter(x, self.resample_filter, pad)

    def _filter(self, x: Tensor, taps: Tensor, pad: int, bias: Tensor | None = None) -> Tensor:
        channels = x.shape[1]
        taps = (taps * 4 if self.up else taps).to(x.dtype).expand(channels, 1, -1, -1)
        if self.up:
            return F.conv_transpose2d(x, taps, bias, stride=2, padding=pad, groups=channels)
        return F.conv2d(x, taps, bias, stride=2, padding=pad, groups=channels)

    def _fused(self, x: Tensor, weight: Tensor, bias: Tensor | None, pad: int) -> Tensor:
        taps = self.resample_filter
        assert taps is not None
        taps_pad = (taps.shape[-1] - 1) // 2
        if self.up:
            x = self._filter(x, taps, max(taps_pad - pad, 0))
            return F.conv2d(x, weight, bias, padding=max(pad - taps_pad, 0))
        x = F.conv2d(x, weight, padding=pad + taps_pad)
        return self._filter(x, taps, 0, bias)


class GroupNorm(nn.Module):
    """Group norm over `min(32, channels // 4)` groups, fused with what surrounds it. Where that
    number does not divide the channels (in no published network), the next smaller one that does.

    `norm(x, silu=..., shift_in=..., scale=..., shift=...)`: see
    `fasttrain_kernels.group_norm_silu` for the formula; x [N, C, H, W], the others [N, C].
    """

    def __init__(self, channels: int, *, eps: float = 1e-5, kernels: Impl = "auto") -> None:
        super().__init__()
        most = max(1, min(32, channels // 4))
        self.groups = next(groups for groups in range(most, 0, -1) if channels % groups == 0)
        self.eps = eps
        self.kernels: Impl = kernels
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self,
        x: Tensor,
        *,
        silu: bool = False,
        shift_in: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        return group_norm_silu(
            x,
            self.weight,
            self.bias,
            groups=self.groups,
            eps=self.eps,
            shift_in=shift_in,
            scale=scale,
            shift=shift,
            silu=silu,
            impl=self.kernels,
        )


def attention(qkv: Tensor, heads: int) -> Tensor:
    """Self-attention over pixels; softmax statistics in float32.

    Args:
        qkv: [N, 3 C, H, W], channel `(head * D + d) * 3 + j` with j = 0, 1, 2 for q, k, v and
            D = C // heads, as the published checkpoints order it.
    Returns:
        [N, C, H, W] in the dtype of qkv.
    """
    n, channels, height, width = qkv.shape
    size = channels // (3 * heads)
    q, k, v = qkv.reshape(n, heads, size, 3, height * width).transpose(2, 4).unbind(3)
    out = F.scaled_dot_product_attention(q, k, v)  # [N, heads, pixels, D]
    return out.transpose(2, 3).reshape(n, heads * size, height, width)


class UNetBlock(nn.Module):
    """The residual block of the module docstring, for both U-Nets.

    Args:
        heads: attention heads, 0 for none; they must divide `out_channels`.
        resample_proj: put a 1x1 convolution on a resampling skip path even where the channel count
            stays.
        init, init_attn, init_zero: of `conv0`, `affine`, `skip`; of `qkv`; of `conv1`, `proj`.
    Forward:
        x [N, in_channels, H, W], emb [N, emb_channels] -> [N, out_channels, H', W'], dtype of x.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        emb_channels: int,
        up: bool = False,
        down: bool = False,
        heads: int = 0,
        dropout: float = 0.0,
        skip_scale: float = 1.0,
        eps: float = 1e-5,
        resample_filter: Sequence[int] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
        init: Init = Init(),
        init_zero: Init = Init(weight=0.0),
        init_attn: Init | None = None,
        kernels: Impl = "auto",
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.dropout = dropout
        self.skip_scale = skip_scale
        self.adaptive_scale = adaptive_scale

        def norm(channels: int) -> GroupNorm:
            return GroupNorm(channels, eps=eps, kernels=kernels)

        def conv(cin: int, cout: int, kernel: int, init: Init, **resample: bool) -> Conv2d:
            taps = tuple(resample_filter)
            return Conv2d(cin, cout, kernel, resample_filter=taps, init=init, **resample)

        self.norm0 = norm(in_channels)
        self.conv0 = conv(in_channels, out_channels, 3, init, up=up, down=down)
        self.affine = Linear(emb_channels, out_channels * (1 + adaptive_scale), init=init)
        self.norm1 = norm(out_channels)
        self.conv1 = conv(out_channels, out_channels, 3, init_zero)
        self.skip: Conv2d | None = None
        if in_channels != out_channels or up or down:
            kernel = 1 if resample_proj or in_channels != out_channels else 0
            self.skip = conv(in_channels, out_channels, kernel, init, up=up, down=down)
        if heads:
            self.norm2 = norm(out_channels)
            self.qkv = conv(out_channels, out_channels * 3, 1, init_attn or init)
            self.proj = conv(out_channels, out_channels, 1, init_zero)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv0(self.norm0(x, silu=True))
        # The embedding stays in its own (float32) precision up to here.
        params = self.affine(emb).to(x.dtype)
        if self.adaptive_scale:
            scale, shift = params.chunk(2, dim=1)
            h = self.norm1(h, silu=True, scale=scale, shift=shift)
        else:
            h = self.norm1(h, silu=True, shift_in=params)
        h = self.conv1(F.dropout(h, self.dropout, self.training))
        x = self._residual(h, x if self.skip is None else self.skip(x))
        if self.heads:
            x = self._residual(self.proj(attention(self.qkv(self.norm2(x)), self.heads)), x)
        return x

    def _residual(self, branch: Tensor, x: Tensor) -> Tensor:
        total = branch + x
        return total if self.skip_scale == 1 else total.mul_(self.skip_scale)


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
        self.register_buffer("freqs", torch.randn(channels // 2) * scale)

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x, (2 * math.pi * self.freqs).to(x.dtype))
        return torch.cat([angles.cos(), angles.sin()], dim=1)
