"""A convolution whose weight trains, in bfloat16 on a CPU.

oneDNN's bfloat16 code for a weight's gradient is the slowest of the three for wide layers, and its
threads wait for each other by spinning: with two threads beside other work one call took up to a
hundred times as long as with one. As a product of the output's gradient with the windows that the
convolution looked at,

    dW[o, (i, j, c)] = sum over windows of dy[window, o] x[window, (i, j, c)],

a few images at a time and summed in float32, it does not. Forward and input gradient are oneDNN's.

    y = trained_conv2d(x, weight, bias, stride=2, padding=1)
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels import in_channels_last, on_cpu

__all__ = ["trained_conv2d"]

WIDE = 128 * 128
"""Input times output channels from which products are faster than oneDNN with one thread, too."""
CHUNK = 4_000_000
"""Bytes of windows at a time: what the caches hold."""


def trained_conv2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: int = 1, padding: int = 0
) -> Tensor:
    """`conv2d` in the dtype and memory format of x.

    x [N, C, H, W], weight [O, C, k, k] and bias [O] of any floating dtype; gradients for all three,
    of any order.
    """
    products = (
        x.dtype == torch.bfloat16
        and weight.requires_grad
        and on_cpu(x)
        and (torch.get_num_threads() > 1 or weight.shape[0] * weight.shape[1] >= WIDE)
    )
    if products:
        return cast(Tensor, _TrainedConv2d.apply(x, weight, bias, stride, padding))
    bias = None if bias is None else bias.to(x.dtype)
    weight = weight.to(x.dtype, memory_format=_layout(x))
    return F.conv2d(x, weight, bias, stride, padding)


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if in_channels_last(x) else torch.contiguous_format


class _TrainedConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: int
    ) -> Tensor:
        layout = _layout(x)
        ctx.save_for_backward(x, weight)
        ctx.options = (stride, padding, layout, None if bias is None else bias.dtype)
        low = weight.to(x.dtype, memory_format=layout)
        return F.conv2d(x, low, None if bias is None else bias.to(x.dtype), stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        x, weight = ctx.saved_tensors
        stride, padding, layout, bias_dtype = ctx.options
        low = weight.to(x.dtype, memory_format=layout)
        dx_wanted, dw_wanted, db_wanted = ctx.needs_input_grad[:3]
        again = torch.is_grad_enabled()  # for a second order: torch's own formula
        dx: Tensor | None = None
        dw: Tensor | None = None
        if dx_wanted or again:
            dx, dw, _ = torch.ops.aten.convolution_backward(
                grad, x, low, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1,
                [dx_wanted, dw_wanted and again, False],
            )  # fmt: skip
        if dw_wanted and dw is None:
            dw = _weight_gradient(x, grad, weight.shape, stride, padding)
        dw = None if dw is None else dw.to(weight.dtype)
        db = grad.sum((0, 2, 3), dtype=torch.float32).to(bias_dtype) if db_wanted else None
        return dx, dw, db, None, None


def _weight_gradient(
    x: Tensor, grad: Tensor, shape: torch.Size, stride: int, padding: int
) -> Tensor:
    """Float32, of a weight of this shape."""
    out, channels, kernel, _ = shape
    windows = F.pad(x.permute(0, 2, 3, 1), (0, 0, *[padding] * 4))
    outer = grad.permute(0, 2, 3, 1)
    row = kernel * kernel * channels
    images = max(1, CHUNK // (outer.shape[1] * outer.shape[2] * row * x.element_size()))
    total = torch.zeros(out, row)
    for first in range(0, len(x), images):
        part = windows[first : first + images].unfold(1, kernel, stride).unfold(2, kernel, stride)
        columns = part.permute(0, 1, 2, 4, 5, 3).reshape(-1, row)
        total += outer[first : first + images].reshape(-1, out).t() @ columns
    return total.view(out, kernel, kernel, channels).permute(0, 3, 1, 2).contiguous()
