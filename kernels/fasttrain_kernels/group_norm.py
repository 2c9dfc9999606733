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

Both memory formats are accepted without conversion. Two forms, chosen by `splits`:

- whole: a program owns all pixels of its groups: one group in contiguous memory; in channels_last,
  where a group's channels may be 12 bytes among hundreds, as many groups side by side as make 48
  bytes or more (`plan_forward`, `plan_backward`);
- split: programs own blocks of pixels; partial statistics (see `statistics`) are written, combined
  for each group, and applied in a second pass. For batches too small to fill a GPU by whole groups,
  and where the partial statistics are there already: then nothing is read for them.

The small gradients need no atomics, so they are deterministic: sums of each (sample, channel) are
written, and a reduction over the batch finishes in torch.

    y = group_norm_silu(x, weight, bias, groups=32, scale=scale, shift=shift)
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels import _group_norm_kernels as kernels
from fasttrain_kernels.dispatch import ROCM, Impl, in_channels_last, resolve
from fasttrain_kernels.statistics import chunk_count, chunk_pixels, statistics_shape

__all__ = [
    "Plan",
    "SplitPlan",
    "group_norm_silu",
    "group_norm_silu_reference",
    "normalized",
    "plan_backward",
    "plan_forward",
    "plan_split",
    "plan_statistics",
    "splits",
]

Activation = Literal["none", "silu", "leaky_relu"]
LEAK = 0.2
"""Slope of the leaky ReLU below zero; the kernels have it as a constant."""


def group_norm_silu_reference(
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
    activation: Activation | None = None,
) -> Tensor:
    """Plain torch, any device and floating dtype, differentiable to any order.

    Computes in float32 (float64 for a float64 x) and returns x.dtype. A modulated norm runs as the
    norm of one sample with N C channels: k and b are then its weight and bias, and the modulation
    costs no pass over the activation.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    h = x.to(dtype)
    if shift_in is not None:
        h = h + _across(shift_in, h)
    k = None if weight is None else weight.to(dtype)
    b = None if bias is None else bias.to(dtype)
    if k is None and b is not None:  # a bias alone has no backward in torch's CPU kernel
        k = torch.ones_like(b)
    if x.numel() == 0:  # sums over nothing, so gradients are zeros; torch's group norm has NaN
        y = h
        for rows in (k, b, scale, shift):
            y = y if rows is None else y + _across(rows, h)
    elif scale is None and shift is None:
        y = F.group_norm(h, groups, k, b, eps)
    else:
        if scale is not None:
            factor = scale.to(dtype) + 1
            k = factor if k is None else factor * k
            b = None if b is None else factor * b
        if shift is not None:
            b = shift.to(dtype) if b is None else b + shift.to(dtype)
            k = torch.ones_like(b) if k is None else k
        samples, channels = x.shape[:2]
        k, b = (None if t is None else t.expand(samples, channels).reshape(-1) for t in (k, b))
        one = h.reshape(1, samples * channels, *x.shape[2:])
        y = F.group_norm(one, samples * groups, k, b, eps).view(x.shape)
    if (activation or _activation(silu)) == "silu":
        y = F.silu(y, inplace=not y.requires_grad)
    elif activation == "leaky_relu":
        y = F.leaky_relu(y, LEAK)
    return y.to(x.dtype)


def _across(rows: Tensor, h: Tensor) -> Tensor:
    """Values of channels, [C] or [N, C], in the dtype of h and broadcast along its pixels."""
    return rows.to(h.dtype).reshape(rows.shape + (1,) * (h.dim() - 2))


def _activation(silu: bool) -> Activation:
    return "silu" if silu else "none"


# -------------------------------------------------------------------------------------- launchers


class Plan(NamedTuple):
    """Launch of a whole form: groups a program, whether one tile holds them, the tile, and warps of
    32 threads."""

    together: int
    fits: bool
    block_c: int
    block_p: int
    num_warps: int

    @property
    def options(self) -> dict[str, Any]:
        """Launch options. Sixteen warps have 128 registers a thread, said outright: the assembler
        would rather spill a few than exceed 64. AMD's compiler has no such option."""
        most = {"maxnreg": 128} if self.num_warps == 16 and not ROCM else {}
        return {"num_warps": self.num_warps, "enable_fp_fusion": True, **most}


class SplitPlan(NamedTuple):
    """Launch of a split form: the tile, and warps of 32 threads."""

    block_c: int
    block_p: int
    num_warps: int


# Fewer programs than this (two for each of an H100's 132 processors) leave a GPU half idle.
_ENOUGH_PROGRAMS = 264


MOST_BLOCKS = 1024
"""Chunks or blocks of pixels that a program combines at once."""


def _power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def groups_together(groups: int, group_channels: int) -> int:
    """Groups a program takes in channels_last: the fewest that divide all and make at least 24
    channels, a multiple of 8, so that each pixel's part begins on 16 bytes and is read in 128-bit
    words; where there is no such number, at least 24 channels, or all."""
    divisors = [n for n in range(1, groups + 1) if groups % n == 0]
    wide = [n for n in divisors if n * group_channels >= 24]
    aligned = [n for n in wide if n * group_channels % 8 == 0]
    return (aligned or wide or [groups])[0]


def _plan(
    groups: int,
    group_channels: int,
    pixels: int,
    last: bool,
    *,
    resident: int,
    a_thread: int = 32,
    loop: tuple[int, int],
) -> Plan:
    """A tile of at most `resident` elements stays in registers, `a_thread` each: enough for several
    128-bit loads under way, and at most 16 warps, from where a thread has 128 registers. Otherwise
    a loop, over tiles of this many elements, by this many warps."""
    together = groups_together(groups, group_channels) if last else 1
    block_c, block_p = _power_of_2(group_channels * together), _power_of_2(pixels)
    size = block_c * block_p
    if size <= resident:
        warps = min(16, max(1, size // (32 * a_thread)))
        return Plan(together, True, block_c, block_p, warps)
    elements, warps = loop
    if last:  # the width stays whole
        block_p = max(1, min(block_p, elements // block_c))
    else:
        block_p = min(block_p, elements)
        block_c = min(block_c, elements // block_p)
    return Plan(together, False, block_c, block_p, warps)


# The fixed launch rules, read off the compiled kernels (benchmarks/aot.py): nothing spills, and one
# or two programs fill a processor, so that what all of them are about to read again is still in the
# cache. channels_last needs more registers: there a tile holds half as much.


def plan_forward(groups: int, group_channels: int, pixels: int, last: bool) -> Plan:
    """Launch of the whole forward kernel."""
    if last:
        return _plan(groups, group_channels, pixels, last, resident=16384, loop=(8192, 16))
    return _plan(groups, group_channels, pixels, last, resident=32768, loop=(4096, 8))


def plan_backward(groups: int, group_channels: int, pixels: int, last: bool) -> Plan:
    """Launch of the whole backward kernel, which holds two tiles instead of one."""
    if last:
        return _plan(
            groups, group_channels, pixels, last, resident=8192, a_thread=16, loop=(4096, 16)
        )
    return _plan(groups, group_channels, pixels, last, resident=16384, loop=(4096, 8))


def plan_split(channels: int, pixels: int, last: bool) -> SplitPlan:
    """Tiles of 4,096 elements, long along what is contiguous in memory."""
    most_c, most_p = _power_of_2(channels), _power_of_2(pixels)
    block_c = min(most_c, 64) if last else min(most_c, max(1, 4096 // min(most_p, 512)))
    block_p = min(most_p, 4096 // block_c)
    return SplitPlan(block_c, block_p, max(1, block_c * block_p // 1024))


def plan_statistics(channels: int, pixels: int) -> SplitPlan:
    """A chunk of pixels by at most 32 channels."""
    chunk = chunk_pixels(pixels)
    block_c = min(_power_of_2(channels), 32)
    return SplitPlan(block_c, chunk, max(1, block_c * chunk // 1024))


def splits(samples: int, groups: int, plan: Plan, given: bool = False) -> bool:
    """Whether the split form runs: not where one tile holds a program's groups; else where the
    statistics are given, or whole groups make too few programs."""
    return not plan.fits and (given or samples * (groups // plan.together) < _ENOUGH_PROGRAMS)


def _stride(rows: Tensor | None) -> int:
    return 0 if rows is None else rows.stride(0)


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
    strides = (_stride(shift_in), _stride(scale), _stride(shift))
    with torch.cuda.device_of(x):
        if not splits(samples, groups, plan, statistics is not None):
            kernels.forward_kernel[(samples * groups // plan.together,)](
                *inputs, *strides, eps, groups, plan.together, *sizes[1:], last, activation,
                plan.fits, plan.block_c, plan.block_p, **plan.options,
            )  # fmt: skip
            return y, means, rstds
        if statistics is None:
            statistics = _statistics(x)
        block = (_power_of_2(sizes[1]), min(MOST_BLOCKS, _power_of_2(chunk_count(pixels))))
        kernels.combine_kernel[(samples * groups,)](
            statistics, shift_in, means, rstds, strides[0], eps, *sizes, chunk_pixels(pixels),
            *block, num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        block_c, block_p, warps = plan_split(channels, pixels, last)
        kernels.apply_kernel[(samples * -(-pixels // block_p), -(-channels // block_c))](
            *inputs, *strides, *sizes, last, activation, block_c, block_p,
            num_warps=warps, enable_fp_fusion=True,
        )  # fmt: skip
    return y, means, rstds


def _statistics(x: Tensor) -> Tensor:
    out = torch.empty(statistics_shape(x), device=x.device, dtype=torch.float32)
    samples, chunks, channels, _ = out.shape
    pixels = x[0, 0].numel()
    block_c, chunk, warps = plan_statistics(channels, pixels)
    kernels.statistics_kernel[(samples * chunks, -(-channels // block_c))](
        x, out, channels, pixels, in_channels_last(x), block_c, chunk,
        num_warps=warps, enable_fp_fusion=True,
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
    strides = (_stride(shift_in), _stride(scale), _stride(shift))
    out_sums = (*sums.unbind(0), None, None, None)[:3]
    with torch.cuda.device_of(x):
        if not splits(samples, groups, plan):
            kernels.backward_kernel[(samples * groups // plan.together,)](
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
        kernels.sums_kernel[grid](*inputs, partial, *how, num_warps=warps, enable_fp_fusion=True)
        if blocks > MOST_BLOCKS:
            partial, blocks = partial.sum(1, keepdim=True), 1
        kernels.combine_backward_kernel[(samples * groups,)](
            partial, weight, scale, rstds, slopes, offsets, *out_sums, strides[1], *sizes, blocks,
            _power_of_2(sizes[1]), _power_of_2(blocks), num_warps=4, enable_fp_fusion=True,
        )  # fmt: skip
        if need_dx:
            kernels.apply_backward_kernel[grid](
                *inputs, slopes, offsets, dx, *how, num_warps=warps, enable_fp_fusion=True
            )
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
        grads = _differentiable_gradients(ctx, dy, inputs)
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
    grads: list[Tensor | None] = [dx if needs[0] else None, *[None] * 5]
    if not any(needs[1:]):
        return grads
    _, weight, bias, _, scale, _ = inputs
    a, b = sums[0], sums[1]
    if needs[1]:
        grads[1] = (a if scale is None else (scale.float() + 1) * a).sum(0)
    if needs[2]:
        grads[2] = (b if scale is None else (scale.float() + 1) * b).sum(0)
    if needs[3]:
        grads[3] = sums[2]
    if needs[4]:
        dscale = a if weight is None else weight.float() * a
        grads[4] = dscale if bias is None else dscale + bias.float() * b
    if needs[5]:
        grads[5] = b
    return [
        g if g is None or t is None else g.to(t.dtype) for g, t in zip(grads, inputs, strict=True)
    ]


def _differentiable_gradients(ctx: Any, dy: Tensor, inputs: list[Any]) -> list[Tensor | None]:
    # Views: the derivative by one input must not run on through another that was made of it.
    views: list[Any] = [None if t is None else t.view_as(t) for t in inputs]
    x, weight, bias, shift_in, scale, shift = views
    y = group_norm_silu_reference(
        x, weight, bias, groups=ctx.groups, eps=ctx.eps,
        shift_in=shift_in, scale=scale, shift=shift, activation=ctx.activation,
    )  # fmt: skip
    needs = ctx.needs_input_grad[:6]
    wanted = [v for v, need in zip(views, needs, strict=True) if need]
    grads = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(grads) if need else None for need in needs]


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
    _check_shapes(x, weight, bias, groups, shift_in, scale, shift, statistics)
    if resolve(impl, x) == "reference":
        return group_norm_silu_reference(
            x, weight, bias, groups=groups, eps=eps,
            shift_in=shift_in, scale=scale, shift=shift, silu=silu,
        )  # fmt: skip
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    shift_in, scale, shift = (_dense_rows(t) for t in (shift_in, scale, shift))
    x = x if in_channels_last(x) else x.contiguous()
    statistics = None if statistics is None else statistics.contiguous()
    activation = _activation(silu)
    return _forward(x, weight, bias, shift_in, scale, shift, groups, eps, activation, statistics)[0]


def normalized(
    x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float, activation: Activation
) -> Tensor:
    """The kernels with any activation, for the ops that are a group norm of another view."""
    return _forward(x, weight, bias, None, None, None, groups, eps, activation, None)[0]


def _dense_rows(rows: Tensor | None) -> Tensor | None:
    return rows if rows is None or rows.stride(1) == 1 else rows.contiguous()


def _check_shapes(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    shift_in: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    statistics: Tensor | None,
) -> None:
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(
            f"x must be a floating-point tensor [N, C, ...], got {x.dtype} {list(x.shape)}"
        )
    samples, channels = x.shape[:2]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"groups must divide the channels: got {channels} channels, {groups} groups"
        )
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.shape != (channels,):
            raise ValueError(f"{name} must be [{channels}] as x has, got {list(value.shape)}")
    for name, value in (("shift_in", shift_in), ("scale", scale), ("shift", shift)):
        if value is not None and value.shape != (samples, channels):
            raise ValueError(
                f"{name} must be [{samples}, {channels}] as x has, got {list(value.shape)}"
            )
    if statistics is not None:
        wanted = statistics_shape(x)
        if statistics.shape != wanted or statistics.dtype != torch.float32:
            raise ValueError(
                f"statistics must be torch.float32 {list(wanted)} as x has, got "
                f"{statistics.dtype} {list(statistics.shape)}"
            )
