r"""Group norm fused with what surrounds it in a diffusion U-Net: shift, modulation, SiLU.

For x [N, C, H, W] and M elements in a group (sums over one sample's group; r is the rstd)::

    h    = x + shift_in[n, c]
    xhat = (h - mean) r,      mean = sum(h) / M,     r = (sum((h - mean)^2) / M + eps)^(-1/2)
    z    = k xhat + b,        k = weight (1 + scale),     b = bias (1 + scale) + shift
    y    = z sigmoid(z)       or y = z without SiLU; `ghost_batch_norm` has y = leaky_relu(z)

Backward, with dz = dy s (1 + z (1 - s)), s = sigmoid(z), and per-(n, c) sums over the pixels::

    A = sum(dz xhat)             B = sum(dz)
    dx        = r (k dz - sum(k B) / M - xhat sum(k A) / M)      sums over the group's channels
    dshift_in = sum(dx) over the pixels
    dscale    = weight A + bias B                       dshift = B
    dweight   = sum over n of (1 + scale) A             dbias  = sum over n of (1 + scale) B

In eager torch that chain reads and writes the activation up to 14 times forward and 19 backward,
here 2 and 3 times, plus a second read from the cache where a group does not fit in registers.

Both memory formats are accepted without conversion, in one of two forms:
see `_group_norm_plans.py`.

The small gradients need no atomics, so they are deterministic: sums of each (sample, channel) are
written, and a reduction over the batch finishes in torch.

    y = group_norm_silu(x, weight, bias, groups=32, scale=scale, shift=shift)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fasttrain_kernels import _group_norm_kernels as kernels
from fasttrain_kernels import _group_norm_split as split_form
from fasttrain_kernels._group_norm_plans import (
    MOST_BLOCKS,
    plan_backward,
    plan_forward,
    plan_split,
    plan_statistics,
    power_of_2,
    splits,
)
from fasttrain_kernels._group_norm_reference import (
    Activation,
    activation_of,
    check_shapes,
    differentiable_gradients,
    group_norm_silu_reference,
    small_gradients,
)
from fasttrain_kernels.dispatch import Impl, in_channels_last, launch, resolve
from fasttrain_kernels.statistics import chunk_count, chunk_pixels, statistics_shape

__all__ = ["group_norm_silu", "group_norm_silu_reference", "normalized", "plan_split"]


# ----------------------------------------------------------------------------------- registration


@torch.library.custom_op("fasttrain::group_norm_silu", mutates_args=())
def _forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shift_in: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
    statistics: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the float32 mean and rstd [N, groups] that the backward reads."""
    y, means, rstds = _allocate(x, weight, bias, shift_in, scale, shift, groups)
    if x.numel() == 0:
        return y, means, rstds
    (samples, channels), pixels, last = x.shape[:2], x[0, 0].numel(), in_channels_last(x)
    sizes = (groups, channels // groups, pixels)
    plan = plan_forward(*sizes, last)
    inputs = (x, weight, bias, shift_in, scale, shift, y, means, rstds)
    strides = [0 if t is None else t.stride(0) for t in (shift_in, scale, shift)]
    if not splits(samples, groups, plan, statistics is not None):
        launch(
            kernels.forward_kernel, (samples * groups // plan.together,),
            *inputs, *strides, eps, groups, plan.together, *sizes[1:], last, activation,
            plan.fits, plan.block_c, plan.block_p, **plan.options,
        )  # fmt: skip
        return y, means, rstds
    if statistics is None:
        statistics = _statistics(x)
    block = (power_of_2(sizes[1]), min(MOST_BLOCKS, power_of_2(chunk_count(pixels))))
    launch(
        split_form.combine_kernel, (samples * groups,),
        statistics, shift_in, means, rstds, strides[0], eps, *sizes, chunk_pixels(pixels),
        *block, num_warps=4,
    )  # fmt: skip
    block_c, block_p, warps = plan_split(channels, pixels, last)
    launch(
        split_form.apply_kernel, (samples * -(-pixels // block_p), -(-channels // block_c)),
        *inputs, *strides, *sizes, last, activation, block_c, block_p, num_warps=warps,
    )  # fmt: skip
    return y, means, rstds


def _statistics(x: Tensor) -> Tensor:
    out = torch.empty(statistics_shape(x), device=x.device, dtype=torch.float32)
    samples, chunks, channels, _ = out.shape
    pixels = x[0, 0].numel()
    block_c, chunk, warps = plan_statistics(channels, pixels)
    launch(
        split_form.statistics_kernel, (samples * chunks, -(-channels // block_c)),
        x, out, channels, pixels, in_channels_last(x), block_c, chunk, num_warps=warps,
    )  # fmt: skip
    return out


@_forward.register_fake
def _allocate(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    groups = inputs[5]
    means = torch.empty(x.shape[0], groups, device=x.device, dtype=torch.float32)
    return torch.empty_like(x), means, torch.empty_like(means)


@torch.library.custom_op("fasttrain::group_norm_silu_backward", mutates_args=())
def _backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shift_in: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    means: Tensor,
    rstds: Tensor,
    activation: str,
    need_dx: bool,
    need_sums: bool,
) -> tuple[Tensor, Tensor]:
    """dx (empty unless needed) and the sums A, B and, with shift_in, dx: float32 [2 or 3, N, C]."""
    dx, sums = _allocate_gradients(x, shift_in, need_dx, need_sums)
    if x.numel() == 0:
        return dx, sums.zero_()
    (samples, channels), groups = x.shape[:2], means.shape[1]
    pixels, last = x[0, 0].numel(), in_channels_last(x)
    sizes = (groups, channels // groups, pixels)
    plan = plan_backward(*sizes, last)
    inputs = (dy, x, weight, bias, shift_in, scale, shift, means, rstds)
    strides = [0 if t is None else t.stride(0) for t in (shift_in, scale, shift)]
    out_sums = (*sums.unbind(0), None, None, None)[:3]
    if not splits(samples, groups, plan):
        launch(
            kernels.backward_kernel, (samples * groups // plan.together,),
            *inputs, dx if need_dx else None, *out_sums, *strides,
            groups, plan.together, *sizes[1:], last, activation,
            plan.fits, plan.block_c, plan.block_p, **plan.options,
        )  # fmt: skip
        return dx, sums
    block_c, block_p, warps = plan_split(channels, pixels, last)
    blocks = -(-pixels // block_p)
    grid = (samples * blocks, -(-channels // block_c))
    how = (*strides, *sizes, last, activation, block_c, block_p)
    partial = torch.empty(samples, blocks, 3, channels, device=x.device, dtype=torch.float32)
    slopes, offsets = torch.empty_like(means), torch.empty_like(means)
    launch(split_form.sums_kernel, grid, *inputs, partial, *how, num_warps=warps)
    if blocks > MOST_BLOCKS:
        partial, blocks = partial.sum(1, keepdim=True), 1
    launch(
        split_form.combine_backward_kernel, (samples * groups,),
        partial, weight, scale, rstds, slopes, offsets, *out_sums, strides[1], *sizes, blocks,
        power_of_2(sizes[1]), power_of_2(blocks), num_warps=4,
    )  # fmt: skip
    if need_dx:
        launch(
            split_form.apply_backward_kernel, grid, *inputs, slopes, offsets, dx, *how,
            num_warps=warps,
        )  # fmt: skip
    return dx, sums


@_backward.register_fake
def _(dy: Tensor, x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    return _allocate_gradients(x, inputs[2], *inputs[-2:])


def _allocate_gradients(
    x: Tensor, shift_in: Tensor | None, need_dx: bool, need_sums: bool
) -> tuple[Tensor, Tensor]:
    parts = (2 if shift_in is None else 3) if need_sums else 0
    sums = torch.empty(parts, *x.shape[:2], device=x.device, dtype=torch.float32)
    return torch.empty_like(x) if need_dx else torch.empty(0, device=x.device, dtype=x.dtype), sums


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, means, rstds = output
    ctx.save_for_backward(*inputs[:6], means, rstds)
    ctx.groups, ctx.eps, ctx.activation = inputs[6:9]


def _gradients(ctx: Any, dy: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
    """The autograd formula: a gradient for each input that needs one.

    Grad mode is on in here exactly under create_graph. A kernel's result would then be a constant
    to the next derivative, wrong without any exception, so the graph of the reference, rebuilt
    from the saved inputs alone, takes over.
    """
    *inputs, means, rstds = ctx.saved_tensors
    if torch.is_grad_enabled():
        grads = differentiable_gradients(ctx, dy, inputs)
    else:
        grads = _kernel_gradients(ctx, dy, inputs, means, rstds)
    return (*grads, None, None, None, None)  # groups, eps, activation, statistics


def _kernel_gradients(
    ctx: Any, dy: Tensor, inputs: list[Tensor | None], means: Tensor, rstds: Tensor
) -> list[Tensor | None]:
    needs = ctx.needs_input_grad[:6]
    x = inputs[0]
    assert x is not None
    layout = torch.channels_last if in_channels_last(x) else torch.contiguous_format
    dy = dy.contiguous(memory_format=layout)
    dx, sums = _backward(dy, *inputs, means, rstds, ctx.activation, needs[0], any(needs[1:]))
    return [dx if needs[0] else None, *small_gradients(sums, inputs, needs)]


_forward.register_autograd(_gradients, setup_context=_setup_context)


# ------------------------------------------------------------------------------------- public op


def group_norm_silu(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-5,
    shift_in: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    silu: bool = True,
    statistics: Tensor | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """`silu((norm(x + shift_in) * weight + bias) * (1 + scale) + shift)`, every part but the norm
    optional.

    Args:
        x: [N, C, *], any trailing dimensions. float32, bfloat16 or float16; the reference also
            takes float64. The kernels read and write contiguous and channels_last memory as it
            is; any other is copied.
        weight, bias: [C] or None.
        groups: of C / groups consecutive channels; divides C.
        eps: added to the variance (biased) under the root.
        shift_in: [N, C] or None, added before the norm.
        scale, shift: [N, C] or None, applied after weight and bias. Rows may be strided: halves of
            one [N, 2 C] projection are read in place.
        silu: whether to end with `z * sigmoid(z)`.
        statistics: the partial statistics of x (without shift_in), if an op before has written
            them; see `fasttrain_kernels.statistics`. The kernels then need not read x for them;
            the reference does without. Not differentiated: gradients flow through x.
        impl: see `fasttrain_kernels.dispatch.resolve`.

    Returns:
        Shape, dtype and memory format of x. Statistics, sums and everything between load and store
        are float32, also with parameters of another dtype than x.

    Gradients: for x, weight, bias, shift_in, scale and shift, only those that need one are
    computed; first order by the kernel, higher orders by the reference's formula.

    Raises:
        ValueError: shapes that do not fit, groups that do not divide C, an `impl` that cannot run.
    """
    check_shapes(x, weight, bias, groups, shift_in, scale, shift, statistics)
    if resolve(impl, x) == "reference":
        return group_norm_silu_reference(
            x, weight, bias, groups=groups, eps=eps,
            shift_in=shift_in, scale=scale, shift=shift, silu=silu,
        )  # fmt: skip
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    shift_in, scale, shift = (
        t if t is None or t.stride(1) == 1 else t.contiguous() for t in (shift_in, scale, shift)
    )
    x = x if in_channels_last(x) else x.contiguous()
    statistics = None if statistics is None else statistics.contiguous()
    activation = activation_of(silu)
    return _forward(x, weight, bias, shift_in, scale, shift, groups, eps, activation, statistics)[0]


def normalized(
    x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float, activation: Activation
) -> Tensor:
    """The kernels with any activation, for the ops that are a group norm of another view."""
    return _forward(x, weight, bias, None, None, None, groups, eps, activation, None)[0]
