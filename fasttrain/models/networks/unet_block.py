"""The residual block of the U-Nets, with attention where it has heads."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fasttrain.models.networks.conv import Conv2d
from fasttrain.models.networks.layers import GroupNorm, Init, Linear
from fasttrain.models.networks.together import Ready
from fasttrain_kernels import (
    attention,
    residual_scale,
    resolve,
)

__all__ = ["UNetBlock", "add_residual", "concatenate"]


def add_residual(
    branch: Tensor, x: Tensor, bias: Tensor | None = None, *, scale: float
) -> tuple[Tensor, Tensor | None]:
    """`(branch + bias + x) * scale`, with its partial statistics where they need no extra pass."""
    if resolve("auto", x) == "reference":
        return residual_scale(branch, x, bias, scale=scale), None
    return residual_scale(branch, x, bias, scale=scale, statistics=True)


def concatenate(
    x: Tensor, statistics: Tensor | None, skip: Tensor, skip_statistics: Tensor | None
) -> tuple[Tensor, Tensor | None]:
    """Two activations concatenated in the channels, with their partial statistics if both have
    them."""
    both = torch.cat([x, skip], dim=1)
    if statistics is None or skip_statistics is None:
        return both, None
    return both, torch.cat([statistics, skip_statistics], dim=2)


class UNetBlock(nn.Module):
    """The residual block of the module docstring, for both U-Nets.

    Args:
        heads: attention heads, 0 for none; they must divide `out_channels`.
        norm_groups: of every norm; 0: EDM's rule.
        resample_proj: put a 1x1 convolution on a resampling skip path even where the channel count
            stays.
        init, init_attn, init_zero: of `conv0`, `affine`, `skip`; of `qkv`; of `conv1`, `proj`.
    Attributes:
        recompute: recompute the norms before trained convolutions in the backward pass instead of
            keeping their results (frozen convolutions keep nothing anyway). Saves memory at the
            cost of a pass over the activation; same numbers.
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
        norm_groups: int = 0,
        resample_filter: Sequence[int] = (1, 1),
        resample_proj: bool = False,
        adaptive_scale: bool = True,
        init: Init = Init(),
        init_zero: Init = Init(weight=0.0),
        init_attn: Init | None = None,
    ) -> None:
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.heads = heads
        self.dropout = dropout
        self.skip_scale = skip_scale
        self.adaptive_scale = adaptive_scale
        self.recompute = False

        def norm(channels: int) -> GroupNorm:
            return GroupNorm(channels, groups=norm_groups, eps=eps)

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
        self, x: Tensor, emb: Tensor | Ready, statistics: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x [N, in_channels, H, W], its partial statistics or None, emb [N, emb_channels], or what
        was made of it for all blocks -> [N, out_channels, H', W'] in the dtype and memory format of
        x, and its statistics."""
        fused = resolve("auto", x) == "triton"
        ready = emb if isinstance(emb, Ready) else self._ready(emb, x, fused)
        inside: dict[str, Any] = {"with_bias": not fused}

        # What follows takes the fork's x, whose gradient the norm's backward pass adds to its own.
        h, x = self._norm_conv(self.norm0, self.conv0, x, inside, silu=True, statistics=statistics)
        bias = self.conv0.bias if fused else None
        if self.adaptive_scale:
            scale, shift = ready.affine
            before = None if bias is None else bias.to(x.dtype).expand(len(x), -1)
            modulation = {"shift_in": before, "scale": scale, "shift": shift}
        else:
            (params,) = ready.affine
            modulation = {"shift_in": params if bias is None else params + bias}
        h, _ = self._norm_conv(
            self.norm1, self.conv1, h, inside, silu=True, dropout=self.dropout, **modulation
        )

        copies = ready.copies
        if self.skip is not None:
            x = self.skip(x, copy=copies.get("skip"), **inside)
        residual = partial(add_residual, scale=self.skip_scale)
        x, statistics = residual(h, x, ready.late)
        if self.heads:
            copy = {"copy": copies.get("qkv")}
            qkv, x = self._norm_conv(self.norm2, self.qkv, x, copy, statistics=statistics)
            h = self.proj(attention(qkv, heads=self.heads), copy=copies.get("proj"), **inside)
            x, statistics = residual(h, x, self.proj.bias if fused else None)
        return x, statistics

    def _ready(self, emb: Tensor, x: Tensor, fused: bool) -> Ready:
        # The embedding stays in its own (float32) precision up to here; the kernels take it so.
        params = self.affine(emb)
        params = params if fused else params.to(x.dtype)
        late: Tensor | None = self.conv1.bias if fused else None
        if late is not None and self.skip is not None and self.skip.bias is not None:
            late = late + self.skip.bias
        return Ready(params.chunk(1 + self.adaptive_scale, dim=1), late)

    def _norm_conv(
        self,
        norm: GroupNorm,
        conv: Conv2d,
        x: Tensor,
        conv_options: dict[str, Any],
        *,
        dropout: float = 0.0,
        **norm_options: Any,
    ) -> tuple[Tensor, Tensor]:
        """The convolution of the norm of x, and x for what else reads it."""

        def run(x: Tensor) -> tuple[Tensor, Tensor]:
            h, x = norm.forked(x, **norm_options)
            return conv(F.dropout(h, dropout, self.training), **conv_options), x

        if not (self.recompute and torch.is_grad_enabled()):
            return run(x)
        if conv.weight is None or not conv.weight.requires_grad:
            return run(x)
        # Ends early: once the norm has run again, the convolution itself does not.
        random = bool(dropout) and self.training
        h: Tensor = checkpoint(
            lambda x: run(x)[0], x, use_reentrant=False, preserve_rng_state=random
        )
        return h, x
