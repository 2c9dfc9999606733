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

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels._bilinear import Axis, between, first, share
from fasttrain_kernels.dispatch import Impl, in_channels_last, launch, resolve, tl, triton

__all__ = ["upsample_add", "upsample_add_reference"]


def upsample_add_reference(x: Tensor, lateral: Tensor | None = None) -> Tensor:
    """Plain torch, any device and floating dtype, differentiable to any order."""
    y = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    return y if lateral is None else y + lateral


# ---------------------------------------------------------------------------------------- kernels
# A tile is BLOCK_C channels by BLOCK_P pixels of the result. LAST: channels_last, where every
# access is 128 bits wide along the channels. H and W are the smaller map's.


@triton.jit
def _tile(C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr,
          BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """This program's sample, channels and pixels, along what lies side by side in memory."""
    across: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    along: tl.constexpr = (HW + BLOCK_P - 1) // BLOCK_P
    tile = tl.program_id(0) % (across * along)
    part = tile // across if LAST else tile % along
    channels = (tile % across if LAST else tile // along) * BLOCK_C + tl.arange(0, BLOCK_C)
    pixels = part * BLOCK_P + tl.arange(0, BLOCK_P)
    return (tl.program_id(0) // (across * along)).to(tl.int64), channels, pixels


@triton.jit
def _at(rows, columns, channels, live, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
        LAST: tl.constexpr):  # fmt: skip
    """Offsets [channels, pixels] in a map of H x W, and which exist."""
    pixels = (rows.to(tl.int64) * W + columns) * (C if LAST else 1)
    offsets = channels.to(tl.int64)[:, None] * (1 if LAST else H * W) + pixels[None, :]
    return offsets, (channels < C)[:, None] & live[None, :]


@triton.jit
def _load(x, rows, columns, channels, live, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
          LAST: tl.constexpr):  # fmt: skip
    offsets, live = _at(rows, columns, channels, live, C, H, W, LAST)
    return tl.load(x + offsets, mask=live, other=0.0).to(tl.float32)


@triton.jit
def _up_kernel(
    x, lateral, y, ratio_h, ratio_w,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    sample, channels, pixels = _tile(C, 4 * H * W, LAST, BLOCK_C, BLOCK_P)
    x, y = x + sample * (C * H * W), y + sample * (C * 4 * H * W)
    live = pixels < 4 * H * W
    rows, columns = pixels // (2 * W), pixels % (2 * W)
    top, bottom, v = between(rows, ratio_h, 0.0, H)
    left, right, h = between(columns, ratio_w, 0.0, W)
    v, h = v[None, :], h[None, :]
    upper = (1.0 - h) * _load(x, top, left, channels, live, C, H, W, LAST)
    upper += h * _load(x, top, right, channels, live, C, H, W, LAST)
    lower = (1.0 - h) * _load(x, bottom, left, channels, live, C, H, W, LAST)
    lower += h * _load(x, bottom, right, channels, live, C, H, W, LAST)
    value = (1.0 - v) * upper + v * lower
    offsets, live = _at(rows, columns, channels, live, C, 2 * H, 2 * W, LAST)
    if lateral is not None:
        there = lateral + sample * (C * 4 * H * W) + offsets
        value += tl.load(there, mask=live, other=0.0).to(tl.float32)
    tl.store(y + offsets, value.to(y.dtype.element_ty), mask=live)


@triton.jit
def _adjoint_kernel(
    dy, dx, ratio_h, ratio_w, inverse_h, inverse_w,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr,
    REACH_H: tl.constexpr, REACH_W: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    sample, channels, pixels = _tile(C, H * W, LAST, BLOCK_C, BLOCK_P)
    dy, dx = dy + sample * (C * 4 * H * W), dx + sample * (C * H * W)
    exists = pixels < H * W
    rows, columns = pixels // W, pixels % W
    row0, column0 = first(rows, ratio_h, 0.0, inverse_h), first(columns, ratio_w, 0.0, inverse_w)
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for a in range(REACH_H):
        vertical = share(row0 + a, rows, ratio_h, 0.0, H, 2 * H)
        for b in range(REACH_W):
            weight = vertical * share(column0 + b, columns, ratio_w, 0.0, W, 2 * W)
            live = exists & (weight > 0)
            value = _load(dy, row0 + a, column0 + b, channels, live, C, 2 * H, 2 * W, LAST)
            total += weight[None, :] * value
    offsets, live = _at(rows, columns, channels, exists, C, H, W, LAST)
    tl.store(dx + offsets, total.to(dx.dtype.element_ty), mask=live)


# --------------------------------------------------------------------------------------- launcher


class Plan(NamedTuple):
    """Launch of a kernel: channels and pixels of a tile of the result, warps of 32 threads."""

    block_c: int
    block_p: int
    num_warps: int


def _power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def plan(channels: int, pixels: int, itemsize: int, last: bool) -> Plan:
    """The fixed launch rule, read off the compiled kernels (benchmarks/aot.py): nothing spills.
    pixels: of the result. 8 a thread; in channels_last whole cache lines of 128 bytes."""
    if last:
        block_c = min(128 // itemsize, _power_of_2(channels))
        block_p = min(2048 // block_c, 32, _power_of_2(pixels))
    else:
        block_p = min(512, _power_of_2(pixels))
        block_c = min(1024 // block_p, 64, _power_of_2(channels))
    return Plan(block_c, block_p, max(1, block_c * block_p // 256))


def _layout(x: Tensor) -> torch.memory_format:
    return torch.channels_last if in_channels_last(x) else torch.contiguous_format


def _axes(height: int, width: int) -> tuple[Axis, Axis]:
    """Of the doubling of a map of this size."""
    return (
        Axis.of(height, 2 * height, align_corners=True),
        Axis.of(width, 2 * width, align_corners=True),
    )


# ----------------------------------------------------------------------------------- registration


@torch.library.custom_op("fasttrain::upsample_add", mutates_args=())
def _up(x: Tensor, lateral: Tensor | None) -> Tensor:
    y = _double(x, lateral)
    if y.numel():
        samples, channels, height, width = x.shape
        last = in_channels_last(y)
        block_c, block_p, warps = plan(channels, 4 * height * width, x.element_size(), last)
        programs = samples * -(-channels // block_c) * -(-4 * height * width // block_p)
        rows, columns = _axes(height, width)
        launch(
            _up_kernel, (programs,),
            x, lateral, y, rows.ratio, columns.ratio, channels, height, width, last,
            block_c, block_p, num_warps=warps,
        )  # fmt: skip
    return y


@_up.register_fake
def _double(x: Tensor, lateral: Tensor | None) -> Tensor:
    samples, channels, height, width = x.shape
    return torch.empty(
        (samples, channels, 2 * height, 2 * width),
        device=x.device,
        dtype=x.dtype,
        memory_format=_layout(x),
    )


@torch.library.custom_op("fasttrain::upsample_add_adjoint", mutates_args=())
def _adjoint(dy: Tensor) -> Tensor:
    dx = _halve(dy)
    if dx.numel():
        samples, channels, height, width = dx.shape
        last = in_channels_last(dy)
        block_c, block_p, warps = plan(channels, height * width, dy.element_size(), last)
        programs = samples * -(-channels // block_c) * -(-height * width // block_p)
        rows, columns = _axes(height, width)
        launch(
            _adjoint_kernel, (programs,),
            dy, dx, rows.ratio, columns.ratio, rows.inverse, columns.inverse,
            channels, height, width, last, rows.reach, columns.reach,
            block_c, block_p, num_warps=warps,
        )  # fmt: skip
    return dx


@_adjoint.register_fake
def _halve(dy: Tensor) -> Tensor:
    samples, channels, height, width = dy.shape
    return torch.empty(
        (samples, channels, height // 2, width // 2),
        device=dy.device,
        dtype=dy.dtype,
        memory_format=_layout(dy),
    )


def _setup_up(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.layout = _layout(inputs[0])


def _up_gradients(ctx: Any, dy: Tensor) -> tuple[Tensor | None, Tensor | None]:
    need_x, need_lateral = ctx.needs_input_grad
    dx = _adjoint(dy.contiguous(memory_format=ctx.layout)) if need_x else None
    return dx, dy if need_lateral else None


def _setup_adjoint(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.layout = _layout(inputs[0])


def _adjoint_gradients(ctx: Any, d: Tensor) -> Tensor:
    return _up(d.contiguous(memory_format=ctx.layout), None)


_up.register_autograd(_up_gradients, setup_context=_setup_up)
_adjoint.register_autograd(_adjoint_gradients, setup_context=_setup_adjoint)


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
    layout = _layout(x)
    x = x.contiguous(memory_format=layout)
    lateral = None if lateral is None else lateral.contiguous(memory_format=layout)
    return _up(x, lateral)
