r"""Bias and activation of a convolution's output, in place and in one pass.

    y = act(y + bias[c]),     act(z) = z,  max(z, 0)  or  min(max(z, 0), 6)

On a GPU torch's convolution adds its bias in a pass of its own, and the activation is another. In a
frozen feature network those are most of the memory traffic. No gradient of its own: it is the end
of an operation that has one (`fasttrain.models.networks.frozen_conv`).

    bias_activation_(F.conv2d(x, weight), bias, "relu")
"""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Literal, NamedTuple

import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels._registration import op
from fasttrain_kernels.dispatch import Impl, in_channels_last, launch, resolve, tl, triton

__all__ = ["Activation", "bias_activation_", "bias_activation_reference_"]

Activation = Literal["none", "relu", "relu6"]


def bias_activation_reference_(y: Tensor, bias: Tensor | None, activation: Activation) -> Tensor:
    """Plain torch, any device and floating dtype; y is overwritten and returned."""
    if bias is not None:
        y.add_(bias.to(y.dtype).view(-1, *[1] * (y.dim() - 2)))
    if activation == "relu":
        F.relu_(y)
    elif activation == "relu6":
        F.hardtanh_(y, 0.0, 6.0)
    return y


# ----------------------------------------------------------------------------------------- kernel
# LAST: channels_last, where a program has BLOCK values as they lie, and their channels are their
# places modulo C. Otherwise a program has BLOCK pixels of one channel.


# The number of samples is not a constant, and the kernel is not compiled again when it is 1 or a
# multiple of 16: batches differ at a data set's end, and between a training and its samples.


@triton.jit(do_not_specialize=("samples",))
def _kernel(
    y, bias, samples,
    C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    if LAST:
        first = tl.program_id(0).to(tl.int64) * BLOCK
        element = first + tl.arange(0, BLOCK)
        live = element < samples.to(tl.int64) * (C * HW)
        channel = ((first % C).to(tl.int32) + tl.arange(0, BLOCK)) % C  # no 64-bit division each
    else:
        blocks: tl.constexpr = (HW + BLOCK - 1) // BLOCK
        row = (tl.program_id(0) // blocks).to(tl.int64)
        pixel = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
        live = pixel < HW
        element = row * HW + pixel
        channel = (row % C).to(tl.int32) + tl.zeros([BLOCK], tl.int32)
    value = tl.load(y + element, mask=live, other=0.0).to(tl.float32)
    if bias is not None:
        value += tl.load(bias + channel, mask=live, other=0.0).to(tl.float32)
    if ACTIVATION != "none":
        value = tl.maximum(value, 0.0, propagate_nan=tl.PropagateNan.ALL)
    if ACTIVATION == "relu6":
        value = tl.minimum(value, 6.0, propagate_nan=tl.PropagateNan.ALL)
    tl.store(y + element, value.to(y.dtype.element_ty), mask=live)


# --------------------------------------------------------------------------------------- launcher


class Plan(NamedTuple):
    """Launch of the kernel: values a program, warps of 32 threads."""

    block: int
    num_warps: int


def plan(pixels: int, last: bool) -> Plan:
    """The fixed launch rule: 16 values a thread, two 128-bit loads of 16-bit values."""
    if last:
        return Plan(2048, 4)
    block = min(2048, max(16, 1 << (pixels - 1).bit_length()))
    return Plan(block, max(1, block // 512))


# ----------------------------------------------------------------------------------- registration


@op("bias_activation_", written=("y",))
def _run(y: Tensor, bias: Tensor | None, activation: str) -> None:
    if not y.numel():
        return
    last, channels, pixels = in_channels_last(y), y.shape[1], y[0, 0].numel()
    block, warps = plan(pixels, last)
    programs = -(-y.numel() // block) if last else y.shape[0] * channels * -(-pixels // block)
    launch(
        _kernel, (programs,), y=y, bias=bias, samples=y.shape[0],
        C=channels, HW=pixels, LAST=last, ACTIVATION=activation, BLOCK=block, num_warps=warps,
    )  # fmt: skip


# ------------------------------------------------------------------------------------- public op


def bias_activation_(
    y: Tensor, bias: Tensor | None, activation: Activation = "none", *, impl: Impl = "auto"
) -> Tensor:
    """Overwrites y with `activation(y + bias)` and returns it.

    Args:
        y: [N, C, *], dense in one of the two memory formats, float32, bfloat16 or float16; the
            reference also takes float64 and any strides. It must need no gradient.
        bias: [C] of any floating dtype, or None.
        activation: "none", "relu" or "relu6".
        impl: see `fasttrain_kernels.dispatch.resolve`.

    Raises:
        ValueError: a bias that does not fit, a y that needs a gradient or is not dense, an unknown
            activation.
    """
    if y.requires_grad:
        raise ValueError("bias_activation_ has no gradient of its own: y must not need one")
    if bias is not None and bias.shape != y.shape[1:2]:
        raise ValueError(f"bias must be [{y.shape[1]}] as y has, got {list(bias.shape)}")
    if activation not in ("none", "relu", "relu6"):
        raise ValueError(f"activation is 'none', 'relu' or 'relu6', not {activation!r}")
    if resolve(impl, y) == "reference":
        return bias_activation_reference_(y, bias, activation)
    if not in_channels_last(y) and not y.is_contiguous():
        raise ValueError(f"y must be contiguous or channels_last, got strides {y.stride()}")
    _run(y, None if bias is None else bias.contiguous(), activation)
    return y
