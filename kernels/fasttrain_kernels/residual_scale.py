r"""The end of a residual block in one pass: bias, sum, scale, and what the next norm needs.

    y = (branch + bias[c] + residual) * scale
    d branch = d residual = dy * scale,     d bias[c] = sum over samples and pixels of dy * scale

In eager torch the bias, the sum and the scale are a pass each, and the next norm reads y once more
for its statistics. Here each activation is read once and y written once; with `statistics` the
kernel also writes y's partial statistics (`fasttrain_kernels.statistics`), two float32 numbers for
up to 256 pixels.

The backward pass is one multiplication, shared by both activations, and none where scale is 1.

    y = residual_scale(branch, x, bias, scale=0.5**0.5)
"""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from fasttrain_kernels._registration import op
from fasttrain_kernels._tiles import Plan, layout_of, place, power_of_2
from fasttrain_kernels.dispatch import Impl, in_channels_last, launch, resolve, tl, triton
from fasttrain_kernels.statistics import (
    chunk_pixels,
    partial_statistics,
    statistics_shape,
    store_statistics,
)

__all__ = ["residual_scale", "residual_scale_reference"]


def residual_scale_reference(
    branch: Tensor, residual: Tensor, bias: Tensor | None = None, *, scale: float = 1.0
) -> Tensor:
    """Plain torch, any device and floating dtype, differentiable to any order. Computes in float32
    (float64 for float64) and returns branch.dtype."""
    dtype = torch.float64 if branch.dtype == torch.float64 else torch.float32
    y = branch.to(dtype)
    if bias is not None:
        y = y + bias.to(dtype).reshape(-1, *[1] * (branch.dim() - 2))
    y = y + residual.to(dtype)
    return (y if scale == 1 else y * scale).to(branch.dtype)


# ----------------------------------------------------------------------------------------- kernel
# For the statistics BLOCK_P is a chunk, whose pixels stay in registers.


@triton.jit
def _kernel(
    branch, residual, bias, y, statistics, scale,
    C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    sample, c0, part = place(C, HW, LAST, BLOCK_C, BLOCK_P)
    channels = c0 + tl.arange(0, BLOCK_C)
    pixels = part * BLOCK_P + tl.arange(0, BLOCK_P)
    live = (channels < C)[:, None] & (pixels < HW)[None, :]
    at_channels = channels.to(tl.int64) * (1 if LAST else HW)
    at_pixels = pixels.to(tl.int64) * (C if LAST else 1)
    offsets = sample * (C * HW) + at_channels[:, None] + at_pixels[None, :]

    value = tl.load(branch + offsets, mask=live, other=0.0).to(tl.float32)
    if bias is not None:
        value += tl.load(bias + channels, mask=channels < C, other=0.0).to(tl.float32)[:, None]
    value += tl.load(residual + offsets, mask=live, other=0.0).to(tl.float32)
    stored = (value * scale).to(y.dtype.element_ty)
    tl.store(y + offsets, stored, mask=live)
    if statistics is not None:
        seen = stored.to(tl.float32)
        store_statistics(statistics, seen, live, sample, part, c0, C, HW, BLOCK_C, BLOCK_P)


# ---------------------------------------------------------------------------------------- launcher


def plan(channels: int, pixels: int, itemsize: int, last: bool, statistics: bool) -> Plan:
    """The fixed launch rule, read off the compiled kernel (benchmarks/aot.py): nothing spills.

    In channels_last a tile takes whole cache lines of 128 bytes, also where a chunk of pixels then
    makes it large. Otherwise 4,096 elements, and in each layout 32 or 64 a thread: several 128-bit
    loads under way.
    """
    chunk = chunk_pixels(pixels)
    if last:
        block_c = min(128 // itemsize, power_of_2(channels))
        block_p = chunk if statistics else min(4096 // block_c, power_of_2(pixels))
    else:
        block_p = chunk if statistics else min(1024, power_of_2(pixels))
        block_c = min(4096 // block_p, 64, power_of_2(channels))
    return Plan(block_c, block_p, min(8, max(1, block_p * block_c // 1024)))


# ----------------------------------------------------------------------------------- registration


def _allocate(
    branch: Tensor, residual: Tensor, bias: Tensor | None, scale: float, statistics: bool
) -> tuple[Tensor, Tensor]:
    shape = statistics_shape(branch) if statistics else (0,)
    partial = torch.empty(shape, device=branch.device, dtype=torch.float32)
    return torch.empty_like(branch), partial


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    bias, ctx.scale = inputs[2:4]
    ctx.bias_dtype = None if bias is None else bias.dtype
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # no zeros for the statistics


def _gradients(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, ...]:
    """The autograd formula: linear, so plain torch serves every order. A kernel of ours would not
    be faster: one product, and one sum in a fixed order that reads dy once."""
    if dy is None:
        return None, None, None, None, None
    needs = ctx.needs_input_grad
    dx = dbias = None
    if needs[0] or needs[1]:
        dx = dy if ctx.scale == 1 else dy * ctx.scale
    if needs[2]:  # of dy as it came, not rounded a second time
        total = dy.sum([0, *range(2, dy.dim())], dtype=torch.float32)
        dbias = (total if ctx.scale == 1 else total * ctx.scale).to(ctx.bias_dtype)
    return dx if needs[0] else None, dx if needs[1] else None, dbias, None, None


@op("residual_scale", fake=_allocate, gradients=_gradients, context=_setup_context)
def _forward(
    branch: Tensor, residual: Tensor, bias: Tensor | None, scale: float, statistics: bool
) -> tuple[Tensor, Tensor]:
    """y, and its partial statistics (empty unless asked for). residual lies as branch does."""
    y, partial = _allocate(branch, residual, bias, scale, statistics)
    if branch.numel():
        samples, channels = branch.shape[:2]
        pixels = branch[0, 0].numel()
        last = in_channels_last(branch)
        tile = plan(channels, pixels, branch.element_size(), last, statistics)
        launch(
            _kernel, (tile.programs(samples, channels, pixels),),
            branch=branch, residual=residual, bias=bias, y=y,
            statistics=partial if statistics else None, scale=scale,
            C=channels, HW=pixels, LAST=last, **tile.sizes,
        )  # fmt: skip
    return y, partial


# ------------------------------------------------------------------------------------- public op


@overload
def residual_scale(
    branch: Tensor,
    residual: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    statistics: Literal[False] = False,
    impl: Impl = "auto",
) -> Tensor: ...


@overload
def residual_scale(
    branch: Tensor,
    residual: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    statistics: Literal[True],
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]: ...


def residual_scale(
    branch: Tensor,
    residual: Tensor,
    bias: Tensor | None = None,
    *,
    scale: float = 1.0,
    statistics: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`(branch + bias[c] + residual) * scale`.

    Args:
        branch, residual: [N, C, *] of one dtype: float32, bfloat16 or float16; the reference also
            takes float64. The result lies as branch does, contiguous or channels_last; residual is
            copied if it lies otherwise.
        bias: [C] or None, of any floating dtype.
        statistics: whether to return the partial statistics of y, too.
        impl: see `fasttrain_kernels.dispatch.resolve`.

    Returns:
        y in the shape, dtype and memory format of branch, computed in float32; with `statistics`
        also those of y as stored, float32 [N, chunks, C, 2], without gradient.

    Gradients: for branch, residual and bias, to any order.

    Raises:
        ValueError: shapes or dtypes that do not fit, an `impl` that cannot run.
    """
    _check(branch, residual, bias)
    if resolve(impl, branch) == "reference":
        y = residual_scale_reference(branch, residual, bias, scale=scale)
        return (y, partial_statistics(y)) if statistics else y
    branch = branch if in_channels_last(branch) else branch.contiguous()
    residual = residual.contiguous(memory_format=layout_of(branch))
    bias = None if bias is None else bias.contiguous()
    y, partial = _forward(branch, residual, bias, scale, statistics)
    return (y, partial) if statistics else y


def _check(branch: Tensor, residual: Tensor, bias: Tensor | None) -> None:
    if branch.dim() < 2 or not branch.is_floating_point():
        raise ValueError(
            f"branch must be a floating-point tensor [N, C, ...], got {branch.dtype} "
            f"{list(branch.shape)}"
        )
    if residual.shape != branch.shape or residual.dtype != branch.dtype:
        raise ValueError(
            f"residual must be {branch.dtype} {list(branch.shape)} as branch is, got "
            f"{residual.dtype} {list(residual.shape)}"
        )
    if bias is not None and bias.shape != branch.shape[1:2]:
        raise ValueError(f"bias must be [{branch.shape[1]}] as branch has, got {list(bias.shape)}")
