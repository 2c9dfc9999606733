"""The layers of `plain_unet`, in plain torch.

The part below the line is copied into exported pipelines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------- copied into exports from here


class Conv(nn.Module):
    """A convolution of kernel 1 or 3 (0: none) behind a filter that doubles or halves the size;
    `late`: the filter comes last, and both pad once."""

    resample_filter: Tensor | None

    def __init__(
        self,
        cin: int,
        cout: int,
        kernel: int,
        *,
        mode: str = "",
        taps: Sequence[int] = (1, 1),
        late: bool = False,
    ) -> None:
        super().__init__()
        self.kernel, self.mode, self.taps, self.late = kernel, mode, tuple(taps), late
        self.weight = nn.Parameter(torch.zeros(cout, cin, kernel, kernel)) if kernel else None
        self.bias = nn.Parameter(torch.zeros(cout)) if kernel else None
        line = torch.tensor(taps, dtype=torch.float32)
        outer = torch.outer(line, line).div(line.sum() ** 2)[None, None]
        self.register_buffer("resample_filter", outer if mode else None)

    def forward(self, x: Tensor) -> Tensor:
        if self.weight is None:
            return self.resample(x)
        reach = self.kernel // 2
        if self.late:
            assert self.resample_filter is not None
            x = F.conv2d(x, self.weight, None, padding=reach + len(self.taps) // 2 - 1)
            filters = self.resample_filter.to(x.dtype).expand(x.shape[1], 1, -1, -1)
            return F.conv2d(x, filters, self.bias, stride=2, groups=x.shape[1])
        if self.mode == "up" and self.kernel == 1 and self.taps == (1, 1):
            return self.resample(F.conv2d(x, self.weight, self.bias))
        return F.conv2d(self.resample(x), self.weight, self.bias, padding=reach)

    def resample(self, x: Tensor) -> Tensor:
        if not self.mode:
            return x
        if self.taps == (1, 1):
            return F.avg_pool2d(x, 2) if self.mode == "down" else F.interpolate(x, scale_factor=2.0)
        line = torch.tensor(self.taps, dtype=x.dtype, device=x.device)
        filters = (torch.outer(line, line) / line.sum() ** 2).expand(x.shape[1], 1, -1, -1)
        pad, groups = len(self.taps) // 2 - 1, x.shape[1]
        if self.mode == "down":
            return F.conv2d(x, filters, stride=2, padding=pad, groups=groups)
        return F.conv_transpose2d(x, 4 * filters, stride=2, padding=pad, groups=groups)


class Norm(nn.Module):
    """Group norm of `x + before`, scaled and shifted, and SiLU."""

    def __init__(self, channels: int, eps: float) -> None:
        super().__init__()
        most = max(1, min(32, channels // 4))
        self.groups = next(n for n in range(most, 0, -1) if channels % n == 0)
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(
        self,
        x: Tensor,
        *,
        silu: bool = True,
        before: Tensor | None = None,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
    ) -> Tensor:
        if before is not None:
            x = x + before[:, :, None, None]
        if scale is None or shift is None:
            y = F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
        elif torch.compiler.is_compiling():  # the number of groups must be a constant here
            y = F.group_norm(x, self.groups, self.weight, self.bias, self.eps)
            y = y * (scale + 1)[:, :, None, None] + shift[:, :, None, None]
        else:  # scale and shift as the weight and bias of one sample with all channels
            k, b = (scale + 1) * self.weight, (scale + 1) * self.bias + shift
            one = x.reshape(1, -1, *x.shape[2:])
            y = F.group_norm(one, len(x) * self.groups, k.reshape(-1), b.reshape(-1), self.eps)
            y = y.view(x.shape)
        return F.silu(y) if silu else y


class Block(nn.Module):
    """Two convolutions, with the embedding between them, beside a skip path; then attention."""

    def __init__(
        self,
        cin: int,
        cout: int,
        *,
        emb: int,
        adm: bool,
        mode: str = "",
        heads: int = 0,
        taps: Sequence[int] = (1, 1),
    ) -> None:
        super().__init__()
        eps = 1e-5 if adm else 1e-6
        self.cin, self.heads, self.adm = cin, heads, adm
        self.skip_scale = 1.0 if adm else math.sqrt(0.5)
        self.norm0 = Norm(cin, eps)
        self.conv0 = Conv(cin, cout, 3, mode=mode, taps=taps)
        self.affine = nn.Linear(emb, cout * (1 + adm))
        self.norm1 = Norm(cout, eps)
        self.conv1 = Conv(cout, cout, 3)
        self.skip: Conv | None = None
        if cin != cout or mode:
            self.skip = Conv(cin, cout, int(cin != cout or not adm), mode=mode, taps=taps)
        if heads:
            self.norm2 = Norm(cout, eps)
            self.qkv = Conv(cout, 3 * cout, 1)
            self.proj = Conv(cout, cout, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h, e = self.conv0(self.norm0(x)), self.affine(emb)
        if self.adm:
            scale, shift = e.chunk(2, dim=1)
            h = self.norm1(h, scale=scale, shift=shift)
        else:
            h = self.norm1(h, before=e)
        h, x = self.conv1(h), x if self.skip is None else self.skip(x)
        x = self.add(h, x)
        return self.add(self.attention(x), x) if self.heads else x

    def add(self, h: Tensor, x: Tensor) -> Tensor:
        return h + x if self.skip_scale == 1 else (h + x) * self.skip_scale

    def attention(self, x: Tensor) -> Tensor:
        n, c, height, width = x.shape
        size = c // self.heads
        weight, bias = self.qkv.weight, self.qkv.bias
        assert weight is not None
        assert bias is not None
        # Published rows are (head, channel, q/k/v): reordered to (q/k/v, head, channel).
        rows = (
            p.unflatten(0, (self.heads, size, 3)).movedim(2, 0).flatten(0, 2)
            for p in (weight, bias)
        )
        qkv = F.conv2d(self.norm2(x, silu=False), *rows)
        q, k, v = qkv.view(n, 3, self.heads, size, height * width).permute(1, 0, 2, 4, 3)
        out = F.scaled_dot_product_attention(q, k, v)
        return self.proj(out.transpose(2, 3).reshape(n, c, height, width))


class Fourier(nn.Module):
    """Noise level -> cosines and sines at the frequencies that the weights hold."""

    freqs: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("freqs", torch.zeros(channels // 2, dtype=torch.float32))

    def forward(self, x: Tensor) -> Tensor:
        angles = torch.outer(x, 2 * math.pi * self.freqs)
        return torch.cat([angles.cos(), angles.sin()], 1)


class Positional(nn.Module):
    """The same at fixed frequencies from 1 to 1 / 10000."""

    def __init__(self, channels: int, *, endpoint: bool) -> None:
        super().__init__()
        self.channels, self.endpoint = channels, endpoint

    def forward(self, x: Tensor) -> Tensor:
        half = self.channels // 2
        steps = torch.arange(half, dtype=torch.float32, device=x.device)
        steps = steps / max(half - self.endpoint, 1)
        angles = torch.outer(x, (1 / 10000) ** steps)
        return torch.cat([angles.cos(), angles.sin()], 1)
