"""Batch norm in evaluation mode is a factor and an offset of each channel, which can be folded into
the convolution before it.

    bn(conv(x)) = (conv(x) - mean) s + bias,     s = weight / sqrt(var + eps)
                = conv(x; s W) + (b - mean) s + bias

    conv = folded(conv, norm)
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn

__all__ = ["folded"]

Conv = TypeVar("Conv", bound=nn.Conv2d)


@torch.no_grad()
def folded(conv: Conv, norm: nn.BatchNorm2d) -> Conv:
    """`conv`, changed in place so that it includes `norm`.

    Computed in float64, so that only the final rounding differs.
    """
    mean, var = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    scale = norm.weight.double() / torch.sqrt(var + norm.eps)
    weight = conv.weight.double() * scale[:, None, None, None]
    before = 0 if conv.bias is None else conv.bias.double()
    bias = norm.bias.double() + (before - mean) * scale
    dtype, trains = conv.weight.dtype, conv.weight.requires_grad
    conv.weight = nn.Parameter(weight.to(dtype), requires_grad=trains)
    conv.bias = nn.Parameter(bias.to(dtype), requires_grad=trains)
    return conv
