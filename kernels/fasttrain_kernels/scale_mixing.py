r"""The projector's way from a small map to the next larger one: bilinear doubling with aligned
corners, plus what that map adds of its own.

    y = up(x) + lateral,     dx = up^T dy,     d lateral = dy

A projected GAN's cross-scale mixing (Sauer et al., arXiv 2111.01007) needs it twice a scale, as
out_i = up(y_i) and y_i = lateral_i + up(V_i y_{i+1}): see `fasttrain.discriminator.projector`. In
eager torch the sum is a pass of its own, here the doubled map is never written without it.

The op is linear, and its adjoint an op as well, so the backward pass of each is the other and any
order of gradients exists. The adjoint gathers: an input's pixel sums the outputs it was part of, in
a fixed order, without atomics.

    y = upsample_add(x, lateral)
"""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels._bilinear import Axis, between, share
from fasttrain_kernels._registration import op
from fasttrain_kernels._tiles import Plan, layout_of, load_at, offsets_at, place, power_of_2
from fasttrain_kernels.dispatch import Impl, in_channels_last, launch, resolve, tl, triton

__all__ = ["upsample_add", "upsample_add_reference"]


def upsample_add_reference(x: Tensor, lateral: Tensor | None = None) -> Tensor:
    """Plain torch, any device and floating dtype, differentiable to any order."""
    y = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    return y if lateral is None else y + lateral


# ---------------------------------------------------------------------------------------- kernels
# H and W are the smaller map's; a tile is of the result.


@triton.jit
def _up_kernel(
    x, lateral, y, ratio_h, ratio_w,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    sample, c0, part = place(C, 4 * H * W, LAST, BLOCK_C, BLOCK_P)
    channels, pixels = c0 + tl.arange(0, BLOCK_C), part * BLOCK_P + tl.arange(0, BLOCK_P)
    x, y = x + sample * (C * H * W), y + sample * (C * 4 * H * W)
    rows, columns = pixels // (2 * W), pixels % (2 * W)
    top, bottom, v = between(rows, ratio_h, 0.0, H)
    left, right, h = between(columns, ratio_w, 0.0, W)
    v, h = v[None, :], h[None, :]
    upper = (1.0 - h) * load_at(x, top, left, channels, C, H, W, LAST)
    upper += h * load_at(x, top, right, channels, C, H, W, LAST)
    lower = (1.0 - h) * load_at(x, bottom, left, channels, C, H, W, LAST)
    lower += h * load_at(x, bottom, right, channels, C, H, W, LAST)
    value = (1.0 - v) * upper + v * lower
    offsets, live = offsets_at(rows, columns, channels, C, 2 * H, 2 * W, LAST)
    if lateral is not None:
        there = lateral + sample * (C * 4 * H * W) + offsets
        value += tl.load(there, mask=live, other=0.0).to(tl.float32)
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=live)


@triton.jit
def _adjoint_kernel(
    dy, dx, ratio_h, ratio_w,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    # Output o lies at o (H - 1) / (2 H - 1), between inputs i - 1 and i + 1 for the four outputs
    # from 2 i - 1 on, and for no other: those weigh nothing in input i.
    sample, c0, part = place(C, H * W, LAST, BLOCK_C, BLOCK_P)
    channels, pixels = c0 + tl.arange(0, BLOCK_C), part * BLOCK_P + tl.arange(0, BLOCK_P)
    dy, dx = dy + sample * (C * 4 * H * W), dx + sample * (C * H * W)
    rows, columns = pixels // W, pixels % W
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for a in tl.static_range(4):
        row = 2 * rows - 1 + a
        vertical = share(row, rows, ratio_h, 0.0, H, 2 * H)
        for b in tl.static_range(4):
            column = 2 * columns - 1 + b
            weight = vertical * share(column, columns, ratio_w, 0.0, W, 2 * W)
            value = load_at(dy, row, column, channels, C, 2 * H, 2 * W, LAST)
            total += weight[None, :] * value
    offsets, live = offsets_at(rows, columns, channels, C, H, W, LAST)
    tl.store(dx + offsets, total.to(dx.dtype.element_ty), mask=live)


# --------------------------------------------------------------------------------------- launcher


def plan(channels: int, pixels: int, itemsize: int, last: bool) -> Plan:
    """The fixed launch rule, read off the compiled kernels (benchmarks/aot.py): nothing spills.
    pixels: of the result. 8 a thread; in channels_last whole cache lines of 128 bytes."""
    if last:
        block_c = min(128 // itemsize, power_of_2(channels))
        block_p = min(2048 // block_c, 32, power_of_2(pixels))
    else:
        block_p = min(512, power_of_2(pixels))
        block_c = min(1024 // block_p, 64, power_of_2(channels))
    return Plan(block_c, block_p, max(1, block_c * block_p // 256))


def _ratio(size: int) -> float:
    """Of the doubling of an axis of this size."""
    return Axis.of(size, 2 * size, align_corners=True).ratio


# ----------------------------------------------------------------------------------- registration


def _double(x: Tensor, lateral: Tensor | None) -> Tensor:
    samples, channels, height, width = x.shape
    shape = (samples, channels, 2 * height, 2 * width)
    return torch.empty(shape, device=x.device, dtype=x.dtype, memory_format=layout_of(x))


def _halve(dy: Tensor) -> Tensor:
    samples, channels, height, width = dy.shape
    shape = (samples, channels, height // 2, width // 2)
    return torch.empty(shape, device=dy.device, dtype=dy.dtype, memory_format=layout_of(dy))


def _keep_layout(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.layout = layout_of(inputs[0])


def _up_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
    need_x, need_lateral = ctx.needs_input_grad
    dx = _adjoint(dy.contiguous(memory_format=ctx.layout)) if need_x else None
    return dx, dy if need_lateral else None


def _adjoint_gradients(ctx: Any, d: Tensor) -> Tensor:
    y: Tensor = _up(d.contiguous(memory_format=ctx.layout), None)
    return y


def _run(kernel: Any, result: Tensor, small: Tensor, **tensors: Tensor | None) -> None:
    """small: the smaller of the two maps."""
    if result.numel():
        samples, channels, height, width = small.shape
        last, pixels = in_channels_last(result), result[0, 0].numel()
        tile = plan(channels, pixels, result.element_size(), last)
        launch(
            kernel, (tile.programs(samples, channels, pixels),),
            **tensors, ratio_h=_ratio(height), ratio_w=_ratio(width),
            C=channels, H=height, W=width, LAST=last, **tile.sizes,
        )  # fmt: skip


@op("upsample_add", fake=_double, gradients=_up_gradients, context=_keep_layout)
def _up(x: Tensor, lateral: Tensor | None) -> Tensor:
    y = _double(x, lateral)
    _run(_up_kernel, y, x, x=x, lateral=lateral, y=y)
    return y


@op("upsample_add_adjoint", fake=_halve, gradients=_adjoint_gradients, context=_keep_layout)
def _adjoint(dy: Tensor) -> Tensor:
    dx = _halve(dy)
    _run(_adjoint_kernel, dx, dx, dy=dy, dx=dx)
    return dx


# ------------------------------------------------------------------------------------- public op


def upsample_add(x: Tensor, lateral: Tensor | None = None, *, impl: Impl = "auto") -> Tensor:
    """`interpolate(x, scale_factor=2, mode="bilinear", align_corners=True) + lateral`.

    Args:
        x: [N, C, H, W], contiguous or channels_last (anything else is copied); float32, bfloat16 or
            float16, the reference also takes float64.
        lateral: [N, C, 2 H, 2 W] in the dtype of x, or None; copied if it lies otherwise than x.
        impl: see `fasttrain_kernels.dispatch.resolve`.

    Returns:
        [N, C, 2 H, 2 W] in the dtype and memory format of x; sums are float32.

    Gradients: any order.

    Raises:
        ValueError: shapes or dtypes that do not fit, an `impl` that cannot run.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f"x must be a floating-point tensor [N, C, H, W], got {x.dtype} {list(x.shape)}"
        )
    wanted = (*x.shape[:2], 2 * x.shape[2], 2 * x.shape[3])
    if lateral is not None and (lateral.shape != wanted or lateral.dtype != x.dtype):
        raise ValueError(
            f"lateral must be {x.dtype} {list(wanted)}, got {lateral.dtype} {list(lateral.shape)}"
        )
    if resolve(impl, x) == "reference":
        return upsample_add_reference(x, lateral)
    layout = layout_of(x)
    x = x.contiguous(memory_format=layout)
    lateral = None if lateral is None else lateral.contiguous(memory_format=layout)
    y: Tensor = _up(x, lateral)
    return y
