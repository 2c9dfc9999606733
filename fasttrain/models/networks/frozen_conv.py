"""A convolution with constant weights, optionally followed by ReLU or ReLU6, that is cheap to
differentiate twice.

R1 differentiates the gradient of a frozen network with respect to its images. torch's double
backward of a convolution also computes the weights' part, group by group, even if it is not needed:
for Lite0 eight times the work of the rest (CPU). With constant weights a convolution is
linear, so its derivative is the transposed convolution:

    y = relu6(W x + b),    dx = W^T (dy * [0 < y < 6]),    and back: d(dy) = [0 < y < 6] * W d(dx).

No input is kept, only the output where an activation needs it. torch's own convolution keeps its
input even when the weight needs no gradient, in a U-Net most of the activation memory.

    y = frozen_conv2d(x, weight, bias, stride=(2, 2), padding=(1, 1), activation="relu6")
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from fasttrain_kernels import bias_activation_
from fasttrain_kernels.bias_activation import Activation
from fasttrain_kernels.dispatch import scope

__all__ = ["Activation", "frozen_conv2d", "frozen_conv_transpose2d", "relu6_along"]

Pair = tuple[int, int]


class _FrozenConv2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: Pair,
        padding: Pair,
        groups: int,
        activation: Activation,
    ) -> Tensor:
        if activation == "relu6" and _ALONG.get():
            y: Tensor = torch.ops.mkldnn._convolution_pointwise(
                x, weight, bias, padding, stride, (1, 1), groups, "hardtanh", [0.0, 6.0], ""
            )
        else:
            # On a GPU torch adds the bias in a separate pass: there the activation takes it along.
            later = x.is_cuda and activation != "none"
            y = F.conv2d(x, weight, None if later else bias, stride, padding, groups=groups)
            if activation != "none":
                bias_activation_(y, bias if later else None, activation)
        ctx.save_for_backward(weight, y if activation != "none" else None)
        ctx.options = (x.shape[-2:], stride, padding, groups, activation)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (grad,) = grads
        weight, y = ctx.saved_tensors
        size, stride, padding, groups, activation = ctx.options
        if y is not None:
            # Detached: the mask is constant, and a gradient of zeros would cost a whole backward.
            if activation == "relu6":
                grad = torch.ops.aten.hardtanh_backward(grad, y.detach(), 0.0, 6.0)
            else:
                grad = torch.ops.aten.threshold_backward(grad, y.detach(), 0.0)
        # Pixels at the bottom right outside of all windows.
        rest = [
            size[i] + 2 * padding[i] - weight.shape[2 + i] - (grad.shape[2 + i] - 1) * stride[i]
            for i in (0, 1)
        ]
        dx = _transposed(grad, weight, stride, padding, rest, groups)
        return dx, None, None, None, None, None, None


def frozen_conv2d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: Pair = (1, 1),
    padding: Pair = (0, 0),
    groups: int = 1,
    activation: Activation = "none",
) -> Tensor:
    """`conv2d`, then ReLU or ReLU6 if asked; differentiable any number of times in x and in x only.

    x [N, C, H, W] and weight [O, C / groups, kh, kw], bias [O] in one float dtype; weight and bias
    get no gradient, so they must be constants.
    """
    if _has_tangent(x):
        y = F.conv2d(x, weight, bias, stride, padding, groups=groups)
        return {"none": lambda y: y, "relu": F.relu, "relu6": F.relu6}[activation](y)
    return _FrozenConv2d.apply(x, weight, bias, stride, padding, groups, activation)


_ALONG = ContextVar("ReLU6 along", default=False)


@contextmanager
def relu6_along(x: Tensor) -> Iterator[None]:
    """Inside, in what a network makes of x, oneDNN applies ReLU6 as the last step of a convolution
    on a CPU, while the result is in its caches: some percent of a fine-tuning iteration, the same
    numbers in bfloat16 and up to rounding in float32. oneDNN makes a number of NaN, so this is for
    finite x; with any other the convolution and its ReLU6 stay apart."""
    token = _ALONG.set(_on_onednn(x) and bool(x.detach().sum(dtype=torch.float32).isfinite()))
    try:
        yield
    finally:
        _ALONG.reset(token)


def _on_onednn(x: Tensor) -> bool:
    """Whether torch's own convolutions of x are oneDNN's, and may be."""
    if scope() != "auto":  # `kernels` names what runs activations
        return False
    onednn = torch.backends.mkldnn
    if x.device.type != "cpu" or not (onednn.is_available() and onednn.enabled and x.numel()):
        return False
    if torch.compiler.is_compiling() or type(x) is not Tensor:  # `plan` follows shapes alone
        return False
    if x.dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return x.dtype == torch.float32


def _transposed(
    grad: Tensor, weight: Tensor, stride: Pair, padding: Pair, rest: list[int], groups: int
) -> Tensor:
    """The input gradient.

    A CPU has no fast bfloat16 code for that of depthwise convolutions. With strides they take a
    hundredth to a tenth of the time in float32; without, half of it as what they are: convolutions
    of the gradient with the turned kernel.
    """
    low = grad.dtype == torch.bfloat16 and grad.device.type == "cpu" and groups > 1
    if low and max(stride) == 1 and groups == weight.shape[0] and weight.shape[1] == 1:
        margins = (weight.shape[2] - 1 - padding[0], weight.shape[3] - 1 - padding[1])
        if min(margins) >= 0:
            turned = weight.flip(2, 3).contiguous(memory_format=torch.channels_last)
            return frozen_conv2d(grad, turned, padding=margins, groups=groups)
    slow = low and max(stride) > 1
    dtype = torch.float32 if slow else grad.dtype
    grad, weight = grad.to(dtype), weight.to(dtype)
    dx = F.conv_transpose2d(grad, weight, None, stride, padding, rest, groups)
    return dx.to(torch.bfloat16) if slow else dx


class _FrozenConvTranspose2d(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: Pair, padding: Pair
    ) -> Tensor:
        ctx.save_for_backward(weight)
        ctx.options = (stride, padding)
        return F.conv_transpose2d(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        (weight,) = ctx.saved_tensors
        return F.conv2d(grads[0], weight, None, *ctx.options), None, None, None, None


def frozen_conv_transpose2d(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, *, stride: Pair, padding: Pair
) -> Tensor:
    """`conv_transpose2d` with constant weight [C, O, kh, kw] and bias [O]; as `frozen_conv2d`."""
    if _has_tangent(x):
        return F.conv_transpose2d(x, weight, bias, stride, padding)
    return _FrozenConvTranspose2d.apply(x, weight, bias, stride, padding)


def _has_tangent(x: Tensor) -> bool:
    """Whether a forward-mode derivative is taken, which torch's own convolutions have; a `jvp` of
    ours could not be compiled."""
    return not torch.compiler.is_compiling() and unpack_dual(x).tangent is not None
