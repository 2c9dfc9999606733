"""The layers of the EDM family of U-Nets (SongUNet, DhariwalUNet).

Parameter names, order and initial distributions are those of the published checkpoints, so that
their state dicts load as they are. Two rules hold everywhere:

- parameters keep their own dtype (float32 while they train); a layer casts them to the dtype and
  memory format of its activations at use, so bfloat16 activations need no second copy of the
  network. What is derived from a frozen weight is kept;
- what the memory bounds is fused, in `fasttrain_kernels`: group norm with the adaptive scale and
  shift and SiLU (statistics in float32), attention, residual sums, resampling. `kernels` names the
  implementation.

The residual block, with e the embedding of the noise level and labels (Karras et al., "Elucidating
the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364, appendix F):

    h = conv0(silu(norm0(x)))
    h = silu(norm1(h + affine(e)))  or, adaptive,  silu(norm1(h) * (1 + scale(e)) + shift(e))
    y = (conv1(dropout(h)) + skip(x)) * skip_scale
    y = (proj(attention(qkv(norm2(y)))) + y) * skip_scale          where the block has attention

With the Triton kernels the biases of conv0, conv1, skip and proj are added by the op that reads the
convolution's output anyway, and a residual sum also writes the partial statistics that the next
norm needs. They travel beside the activation, as None where nobody wrote them.

Use: `y, statistics = UNetBlock(64, 128, emb_channels=256, down=True)(x, emb)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fasttrain.networks.frozen_conv import frozen_conv2d, frozen_conv_transpose2d
from fasttrain_kernels import (
    MOST_HEAD_SIZE,
    Impl,
    attention,
    blocked_rows,
    group_norm_silu,
    in_channels_last,
    resample2d,
    residual_scale,
    resolve,
    upsampled_weight,
)

__all__ = [
    "Conv2d",
    "FourierEmbedding",
    "GroupNorm",
    "Init",
    "Linear",
    "PositionalEmbedding",
    "UNetBlock",
    "add_residual",
    "concatenate",
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


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if in_channels_last(x) else torch.contiguous_format


class _Derived:
    """A tensor made of a parameter, in the dtype and layout of the activations. That of a frozen
    one is kept until the parameter, or what is asked for, changes; that of a trained one is made
    anew, because gradients flow through it."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        self.make = make
        self.key: tuple[object, ...] = ()
        self.value: Tensor | None = None

    def __call__(self, parameter: Tensor, x: Tensor) -> Tensor:
        sharded = hasattr(parameter, "ds_id")  # by ZeRO 3: whole for a moment only
        if parameter.requires_grad or sharded or torch.compiler.is_compiling():
            return self._derive(parameter, x)
        key = (parameter.data_ptr(), parameter._version, x.dtype, _layout(x))
        if self.value is None or key != self.key:
            with torch.no_grad():
                self.key, self.value = key, self._derive(parameter, x)
        return self.value

    def _derive(self, parameter: Tensor, x: Tensor) -> Tensor:
        value = self.make(parameter)
        layout = _layout(x) if value.dim() == 4 else torch.contiguous_format
        return value.to(x.dtype, memory_format=layout)

    def __deepcopy__(self, memo: object) -> _Derived:
        return _Derived(self.make)  # the copy's parameter may become another


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

    The filter comes before the convolution; where the two commute, or are one transposed
    convolution, the cheaper equal runs. With `fused_resample` the zero padding of both is applied
    once, before either (only the border differs), and a downsampling filter runs last.

    A frozen weight's convolution keeps no input for the backward pass.

    Args:
        resample_filter: the 1-d filter's taps, `(1, 1)` or `(1, 3, 3, 1)`; normalised here.
        blocks_of: heads, where the output is the queries, keys and values of that many: its
            channels, (head, d, j) in the parameters, then come out as (j, head, d), which
            `attention` reads in place.
    Raises:
        ValueError: `up` together with `down`; an odd number of taps.
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
        blocks_of: int = 0,
        init: Init = Init(),
        kernels: Impl = "auto",
    ) -> None:
        if up and down:
            raise ValueError("a convolution resamples up or down, not both: choose one")
        if len(resample_filter) % 2:
            raise ValueError(
                f"resample_filter has {len(resample_filter)} taps: take an even number"
            )
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel = kernel
        self.up = up
        self.down = down
        self.fused_resample = fused_resample
        self.blocks_of = blocks_of
        self.kernels: Impl = kernels
        self.taps = tuple(resample_filter)
        fans = (in_channels * kernel**2, out_channels * kernel**2)
        shape = (out_channels, in_channels, kernel, kernel)
        self.weight = init.draw(shape, *fans, init.weight) if kernel else None
        self.bias = init.draw((out_channels,), *fans, init.bias) if kernel else None
        self._blocked_weight = _Derived(lambda weight: blocked_rows(weight, blocks_of))
        self._blocked_bias = _Derived(lambda bias: blocked_rows(bias, blocks_of))
        self._upsampled = _Derived(lambda weight: upsampled_weight(weight.float()))
        taps = torch.tensor(resample_filter, dtype=torch.float32)
        outer = torch.outer(taps, taps).div(taps.sum() ** 2)[None, None]
        self.register_buffer("resample_filter", outer if up or down else None)

    def forward(self, x: Tensor, *, with_bias: bool = True) -> Tensor:
        """x [N, in_channels, H, W] -> [N, out_channels, H', W'] in its dtype and memory format.
        Without the bias, adding it is left to the caller."""
        if self.weight is None:
            return self._resample(x)
        bias = self._bias(x) if with_bias else None
        if self.resample_filter is not None and self.fused_resample:
            return self._fused(x, bias)
        if self.up and self.kernel == 1 and (bias is None or self.taps == (1, 1)):
            return self._resample(self._convolve(x, bias))  # a quarter of the multiplications
        if self.up and self.taps == (1, 1) and resolve(self.kernels, x) == "triton":
            weight = self._upsampled(self.weight, x)
            if weight.requires_grad or (bias is not None and bias.requires_grad):
                return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
            return frozen_conv_transpose2d(x, weight, bias, stride=(2, 2), padding=(1, 1))
        return self._convolve(self._resample(x), bias)

    def _bias(self, x: Tensor) -> Tensor | None:
        if self.bias is not None and self.blocks_of:
            return self._blocked_bias(self.bias, x)
        return _cast(self.bias, x)

    def _convolve(self, x: Tensor, bias: Tensor | None, padding: int | None = None) -> Tensor:
        """The convolution alone, same padding unless given."""
        assert self.weight is not None
        weight = self._blocked_weight(self.weight, x) if self.blocks_of else self.weight
        if self.kernel == 1 and padding is None:
            matrix = weight.flatten(1).to(x.dtype)
            if in_channels_last(x):  # a product over pixels, which adds the bias as it stores
                return F.linear(x.permute(0, 2, 3, 1), matrix, bias).permute(0, 3, 1, 2)
            weight = matrix[:, :, None, None]  # strides that no one takes for channels_last
        else:
            weight = weight.to(x.dtype, memory_format=_layout(x))
        padding = self.kernel // 2 if padding is None else padding
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            return F.conv2d(x, weight, bias, padding=padding)
        return frozen_conv2d(x, weight, bias, padding=(padding, padding))

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample_filter is None:
            return x
        return resample2d(x, "up" if self.up else "down", taps=self.taps, impl=self.kernels)

    def _fused(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """One padding for both: the filter runs without its own."""
        reach, filter_reach = self.kernel // 2, len(self.taps) // 2 - 1
        filters = self.resample_filter
        assert filters is not None
        if self.up:
            filters = 4 * filters.to(x.dtype).expand(x.shape[1], 1, -1, -1)
            pad = max(filter_reach - reach, 0)
            x = F.conv_transpose2d(x, filters, stride=2, padding=pad, groups=x.shape[1])
            return self._convolve(x, bias, max(reach - filter_reach, 0))
        x = self._convolve(x, None, reach + filter_reach)
        filters = filters.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, filters, bias, stride=2, groups=x.shape[1])


class GroupNorm(nn.Module):
    """Group norm over `min(32, channels // 4)` groups, fused with what surrounds it. Where that
    number does not divide the channels (in no published network), the next smaller one that does.

    `norm(x, silu=..., shift_in=..., scale=..., shift=..., statistics=...)`: see
    `fasttrain_kernels.group_norm_silu` for the formula; x [N, C, H, W], shifts and scale [N, C].
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
        statistics: Tensor | None = None,
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
            statistics=statistics,
            impl=self.kernels,
        )


def add_residual(
    branch: Tensor, x: Tensor, bias: Tensor | None = None, *, scale: float, kernels: Impl
) -> tuple[Tensor, Tensor | None]:
    """`(branch + bias + x) * scale`, and its partial statistics where they cost no pass."""
    if resolve(kernels, x) == "reference":
        return residual_scale(branch, x, bias, scale=scale, impl=kernels), None
    return residual_scale(branch, x, bias, scale=scale, statistics=True, impl=kernels)


def concatenate(
    x: Tensor, statistics: Tensor | None, skip: Tensor, skip_statistics: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Two activations side by side in the channels, with their partial statistics if both have
    them."""
    both = torch.cat([x, skip], dim=1)
    if statistics is None or skip_statistics is None:
        return both, None
    return both, torch.cat([statistics, skip_statistics], dim=2)


class UNetBlock(nn.Module):
    """The residual block of the module docstring, for both U-Nets.

    Args:
        heads: attention heads, 0 for none; they must divide `out_channels`.
        resample_proj: put a 1x1 convolution on a resampling skip path even where the channel count
            stays.
        init, init_attn, init_zero: of `conv0`, `affine`, `skip`; of `qkv`; of `conv1`, `proj`.
    Attributes:
        recompute: in the backward pass, compute the norms in front of convolutions that train once
            more instead of keeping their results (the convolutions that are frozen keep nothing
            anyway). Saves memory for a pass over the activation; same numbers.
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
        self.kernels: Impl = kernels
        self.recompute = False

        def norm(channels: int) -> GroupNorm:
            return GroupNorm(channels, eps=eps, kernels=kernels)

        def conv(
            cin: int, cout: int, kernel: int, init: Init, *, blocks_of: int = 0, **resample: bool
        ) -> Conv2d:
            return Conv2d(
                cin,
                cout,
                kernel,
                resample_filter=tuple(resample_filter),
                blocks_of=blocks_of,
                init=init,
                kernels=kernels,
                **resample,
            )

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
            self.qkv = conv(out_channels, out_channels * 3, 1, init_attn or init, blocks_of=heads)
            self.proj = conv(out_channels, out_channels, 1, init_zero)

    def forward(
        self, x: Tensor, emb: Tensor, statistics: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x [N, in_channels, H, W], its partial statistics or None, emb [N, emb_channels] ->
        [N, out_channels, H', W'] in the dtype and memory format of x, and its statistics."""
        fused = resolve(self.kernels, x) == "triton"
        inside = {"with_bias": not fused}

        h = self._norm_conv(self.norm0, self.conv0, x, inside, silu=True, statistics=statistics)
        # The embedding stays in its own (float32) precision up to here.
        params, bias = self.affine(emb), self.conv0.bias if fused else None
        if self.adaptive_scale:
            scale, shift = params.to(x.dtype).chunk(2, dim=1)
            before = None if bias is None else bias.to(x.dtype).expand(len(x), -1)
            modulation = {"shift_in": before, "scale": scale, "shift": shift}
        else:
            modulation = {"shift_in": (params if bias is None else params + bias).to(x.dtype)}
        h = self._norm_conv(
            self.norm1, self.conv1, h, inside, silu=True, dropout=self.dropout, **modulation
        )

        late: Tensor | None = self.conv1.bias if fused else None
        if self.skip is not None:
            x = self.skip(x, **inside)
            if late is not None and self.skip.bias is not None:
                late = late + self.skip.bias
        residual = partial(add_residual, scale=self.skip_scale, kernels=self.kernels)
        x, statistics = residual(h, x, late)
        if self.heads:
            qkv = self._norm_conv(self.norm2, self.qkv, x, {}, statistics=statistics)
            kernels = self.kernels if self.out_channels <= self.heads * MOST_HEAD_SIZE else "auto"
            h = self.proj(attention(qkv, heads=self.heads, impl=kernels), **inside)
            x, statistics = residual(h, x, self.proj.bias if fused else None)
        return x, statistics

    def _norm_conv(
        self,
        norm: GroupNorm,
        conv: Conv2d,
        x: Tensor,
        conv_options: dict[str, bool],
        *,
        dropout: float = 0.0,
        **norm_options: Tensor | bool | None,
    ) -> Tensor:
        def run(x: Tensor) -> Tensor:
            h = F.dropout(norm(x, **norm_options), dropout, self.training)
            return conv(h, **conv_options)

        trains = conv.weight is not None and conv.weight.requires_grad
        if not (self.recompute and trains and torch.is_grad_enabled()):
            return run(x)
        # Ends early: once the norm has run again, the convolution itself does not.
        random = bool(dropout) and self.training
        return checkpoint(run, x, use_reentrant=False, preserve_rng_state=random)


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
