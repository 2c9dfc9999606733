r"""Group norm fused with what surrounds it in a diffusion U-Net: shift, modulation, SiLU.

For x [N, C, H, W] and M elements in a group (sums over one sample's group; r is the rstd)::

    h    = x + shift_in[n, c]
    xhat = (h - mean) r,      mean = sum(h) / M,     r = (sum((h - mean)^2) / M + eps)^(-1/2)
    z    = k xhat + b,        k = weight (1 + scale),     b = bias (1 + scale) + shift
    y    = z sigmoid(z)       or y = z without SiLU

Backward, with dz = dy s (1 + z (1 - s)), s = sigmoid(z), and per-(n, c) sums over the pixels::

    A = sum(dz xhat)             B = sum(dz)
    dx        = r (k dz - sum(k B) / M - xhat sum(k A) / M)      sums over the group's channels
    dshift_in = sum(dx) over the pixels
    dscale    = weight A + bias B                       dshift = B
    dweight   = sum over n of (1 + scale) A             dbias  = sum over n of (1 + scale) B

In eager torch that chain reads and writes the activation up to 14 times forward and 19 backward,
here 2 and 3 times, plus a second read from the cache where a group does not fit in registers.

The small gradients need no atomics, so they are deterministic: a program owns all pixels of its
(sample, group), writes A, B and sum(dx), and a reduction over the batch finishes in torch.

    y = group_norm_silu(x, weight, bias, groups=32, scale=scale, shift=shift)
"""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels.dispatch import Impl, resolve, tl, triton

__all__ = ["Plan", "group_norm_silu", "group_norm_silu_reference", "plan_backward", "plan_forward"]


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
) -> Tensor:
    """Plain torch, any device and floating dtype, differentiable to any order.

    Computes in float32 (float64 for a float64 x) and returns x.dtype. A modulated norm runs as the
    norm of one sample with N C channels: k and b are then its weight and bias, and the modulation
    costs no pass over the activation.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    h = x.to(dtype)
    if shift_in is not None:
        h = h + shift_in.to(dtype).reshape(shift_in.shape + (1,) * (x.dim() - 2))
    k = None if weight is None else weight.to(dtype)
    b = None if bias is None else bias.to(dtype)
    if k is None and b is not None:  # a bias alone has no backward in torch's CPU kernel
        k = torch.ones_like(b)
    if (scale is None and shift is None) or x.numel() == 0:
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
    if silu:
        y = F.silu(y, inplace=not y.requires_grad)
    return y.to(x.dtype)


# ---------------------------------------------------------------------------------------- kernels
# One program a (sample, group): CG channels of HW pixels, one after the other in memory. A tile is
# BLOCK_C channels by BLOCK_P pixels. FITS: one tile holds the group, is read once and stays in
# registers; otherwise two loops over tiles, and the second read comes from the cache. Pointers of
# absent inputs are None, and the branches on them vanish when the kernel is compiled. Sizes are
# constants of the kernel: only so does Triton see rows that are aligned for 128-bit loads.


@triton.jit
def _at(pointer, offset):
    return None if pointer is None else pointer + offset


@triton.jit
def _tile(c0, p0, CG: tl.constexpr, HW: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """Offsets and mask of the tile that starts at channel c0 and pixel p0 of the group."""
    rows = c0 + tl.arange(0, BLOCK_C)
    columns = p0 + tl.arange(0, BLOCK_P)
    live = (rows < CG)[:, None] & (columns < HW)[None, :]
    return rows.to(tl.int64)[:, None] * HW + columns[None, :], live


@triton.jit
def _rows(pointer, c0, CG: tl.constexpr, BLOCK_C: tl.constexpr):
    """One float32 value for each channel of the tile."""
    rows = c0 + tl.arange(0, BLOCK_C)
    return tl.load(pointer + rows, mask=rows < CG, other=0.0).to(tl.float32)


@triton.jit
def _load_h(x, shift_in, offsets, live, c0, CG: tl.constexpr, BLOCK_C: tl.constexpr):
    """x + shift_in in float32; without meaning outside the mask."""
    h = tl.load(x + offsets, mask=live, other=0.0).to(tl.float32)
    if shift_in is not None:
        h += _rows(shift_in, c0, CG, BLOCK_C)[:, None]
    return h


@triton.jit
def _affine(weight, bias, scale, shift, c0, CG: tl.constexpr, BLOCK_C: tl.constexpr):
    """k and b of the docstring for each channel of the tile, [BLOCK_C, 1]."""
    k = tl.full([BLOCK_C], 1.0, tl.float32)
    b = tl.zeros([BLOCK_C], tl.float32)
    if weight is not None:
        k = _rows(weight, c0, CG, BLOCK_C)
    if bias is not None:
        b = _rows(bias, c0, CG, BLOCK_C)
    if scale is not None:
        factor = 1.0 + _rows(scale, c0, CG, BLOCK_C)
        k *= factor
        b *= factor
    if shift is not None:
        b += _rows(shift, c0, CG, BLOCK_C)
    return k[:, None], b[:, None]


@triton.jit
def _forward_kernel(
    x, weight, bias, shift_in, scale, shift, y, means, rstds,
    shift_in_stride, scale_stride, shift_stride, eps,
    GROUPS: tl.constexpr, CG: tl.constexpr, HW: tl.constexpr, SILU: tl.constexpr,
    FITS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    sample = program // GROUPS
    channel = program % GROUPS * CG
    x, y = x + program * CG * HW, y + program * CG * HW
    weight, bias = _at(weight, channel), _at(bias, channel)
    shift_in = _at(shift_in, sample * shift_in_stride + channel)
    scale = _at(scale, sample * scale_stride + channel)
    shift = _at(shift, sample * shift_stride + channel)
    size: tl.constexpr = CG * HW

    # Sums of differences to the first tile's mean: nothing cancels when |mean| >> deviation.
    offsets, live = _tile(0, 0, CG, HW, BLOCK_C, BLOCK_P)
    first = _load_h(x, shift_in, offsets, live, 0, CG, BLOCK_C)
    pivot = tl.sum(tl.where(live, first, 0.0)) / (min(CG, BLOCK_C) * min(HW, BLOCK_P))
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    square = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for c0 in range(0, CG, BLOCK_C):
        for p0 in range(0, HW, BLOCK_P):
            offsets, live = _tile(c0, p0, CG, HW, BLOCK_C, BLOCK_P)
            h = first if FITS else _load_h(x, shift_in, offsets, live, c0, CG, BLOCK_C)
            difference = tl.where(live, h - pivot, 0.0)
            total += difference
            square += difference * difference
    delta = tl.sum(total) / size
    mean = pivot + delta
    rstd = 1.0 / tl.sqrt(tl.maximum(tl.sum(square) / size - delta * delta, 0.0) + eps)
    tl.store(means + program, mean)
    tl.store(rstds + program, rstd)

    for c0 in range(0, CG, BLOCK_C):
        k, b = _affine(weight, bias, scale, shift, c0, CG, BLOCK_C)
        for p0 in range(0, HW, BLOCK_P):
            offsets, live = _tile(c0, p0, CG, HW, BLOCK_C, BLOCK_P)
            h = first if FITS else _load_h(x, shift_in, offsets, live, c0, CG, BLOCK_C)
            z = (h - mean) * (k * rstd) + b
            if SILU:
                z *= tl.sigmoid(z)
            tl.store(y + offsets, z.to(y.dtype.element_ty), mask=live)


@triton.jit
def _load_xhat_dz(
    x, dy, shift_in, c0, p0, mean, rstd, k, b,
    CG: tl.constexpr, HW: tl.constexpr, SILU: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """xhat and dz of a tile, both zero outside the mask."""
    offsets, live = _tile(c0, p0, CG, HW, BLOCK_C, BLOCK_P)
    dz = tl.load(dy + offsets, mask=live, other=0.0).to(tl.float32)
    h = _load_h(x, shift_in, offsets, live, c0, CG, BLOCK_C)
    xhat = tl.where(live, (h - mean) * rstd, 0.0)
    if SILU:
        z = k * xhat + b
        s = tl.sigmoid(z)
        dz *= s * (1.0 + z * (1.0 - s))
    return xhat, dz


@triton.jit
def _backward_kernel(
    dy, x, weight, bias, shift_in, scale, shift, means, rstds, dx, sums_a, sums_b, sums_dx,
    shift_in_stride, scale_stride, shift_stride,
    GROUPS: tl.constexpr, CG: tl.constexpr, HW: tl.constexpr, SILU: tl.constexpr,
    FITS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    sample = program // GROUPS
    channel = program % GROUPS * CG
    dy, x, dx = dy + program * CG * HW, x + program * CG * HW, _at(dx, program * CG * HW)
    weight, bias = _at(weight, channel), _at(bias, channel)
    shift_in = _at(shift_in, sample * shift_in_stride + channel)
    scale = _at(scale, sample * scale_stride + channel)
    shift = _at(shift, sample * shift_stride + channel)
    mean, rstd = tl.load(means + program), tl.load(rstds + program)
    size: tl.constexpr = CG * HW
    if FITS:
        k, b = _affine(weight, bias, scale, shift, 0, CG, BLOCK_C)
        first_xhat, first_dz = _load_xhat_dz(
            x, dy, shift_in, 0, 0, mean, rstd, k, b, CG, HW, SILU, BLOCK_C, BLOCK_P
        )

    # A and B of every channel, and their means over the group weighted by k
    slope = 0.0
    offset = 0.0
    for c0 in range(0, CG, BLOCK_C):
        rows = c0 + tl.arange(0, BLOCK_C)
        k, b = _affine(weight, bias, scale, shift, c0, CG, BLOCK_C)
        tile_a = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
        tile_b = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
        for p0 in range(0, HW, BLOCK_P):
            if FITS:
                xhat, dz = first_xhat, first_dz
            else:
                xhat, dz = _load_xhat_dz(
                    x, dy, shift_in, c0, p0, mean, rstd, k, b, CG, HW, SILU, BLOCK_C, BLOCK_P
                )
            tile_a += dz * xhat
            tile_b += dz
        slope += tl.sum(k * tile_a) / size
        offset += tl.sum(k * tile_b) / size
        if sums_a is not None:
            tl.store(sums_a + program * CG + rows, tl.sum(tile_a, axis=1), mask=rows < CG)
            tl.store(sums_b + program * CG + rows, tl.sum(tile_b, axis=1), mask=rows < CG)

    if dx is not None or sums_dx is not None:
        for c0 in range(0, CG, BLOCK_C):
            rows = c0 + tl.arange(0, BLOCK_C)
            k, b = _affine(weight, bias, scale, shift, c0, CG, BLOCK_C)
            tile_dx = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
            for p0 in range(0, HW, BLOCK_P):
                offsets, live = _tile(c0, p0, CG, HW, BLOCK_C, BLOCK_P)
                if FITS:
                    xhat, dz = first_xhat, first_dz
                else:
                    xhat, dz = _load_xhat_dz(
                        x, dy, shift_in, c0, p0, mean, rstd, k, b, CG, HW, SILU, BLOCK_C, BLOCK_P
                    )
                gradient = rstd * (k * dz - offset - xhat * slope)
                if dx is not None:
                    tl.store(dx + offsets, gradient.to(dx.dtype.element_ty), mask=live)
                if sums_dx is not None:
                    tile_dx += tl.where(live, gradient, 0.0)
            if sums_dx is not None:
                tl.store(sums_dx + program * CG + rows, tl.sum(tile_dx, axis=1), mask=rows < CG)


# -------------------------------------------------------------------------------------- launchers


class Plan(NamedTuple):
    """Launch of a kernel: whether one tile holds the group, the tile, and warps of 32 threads."""

    fits: bool
    block_c: int
    block_p: int
    num_warps: int


def _power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


def _plan(group_channels: int, pixels: int, resident: int, looped: int) -> Plan:
    """A tile of at most `resident` elements stays in registers, else loops over tiles of `looped`.

    32 elements a thread: enough for several 128-bit loads under way; at most 16 warps, from where
    a thread has 128 registers.
    """
    block_c, block_p = _power_of_2(group_channels), _power_of_2(pixels)
    fits = block_c * block_p <= resident
    if not fits:
        block_p = min(block_p, looped)
        block_c = min(block_c, looped // block_p)
    return Plan(fits, block_c, block_p, min(16, max(1, block_c * block_p // 1024)))


def plan_forward(group_channels: int, pixels: int) -> Plan:
    """The fixed launch rule, read off the compiled kernels (benchmarks/aot.py): nothing spills."""
    return _plan(group_channels, pixels, resident=32768, looped=4096)


def plan_backward(group_channels: int, pixels: int) -> Plan:
    """As `plan_forward`, but two tiles are held instead of one: a group half as large fits."""
    return _plan(group_channels, pixels, resident=16384, looped=4096)


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
    silu: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the float32 mean and rstd [N, groups] that the backward reads."""
    samples, channels = x.shape[:2]
    y = torch.empty_like(x)
    means = torch.empty(samples, groups, device=x.device, dtype=torch.float32)
    rstds = torch.empty_like(means)
    if x.numel():
        sizes = (groups, channels // groups, x[0, 0].numel())
        *tile, warps = plan_forward(*sizes[1:])
        with torch.cuda.device_of(x):
            _forward_kernel[(samples * groups,)](
                x, weight, bias, shift_in, scale, shift, y, means, rstds,
                _stride(shift_in), _stride(scale), _stride(shift), eps,
                *sizes, silu, *tile, num_warps=warps, enable_fp_fusion=True,
            )  # fmt: skip
    return y, means, rstds


@_forward.register_fake
def _(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    groups = inputs[5]
    means = x.new_empty(x.shape[0], groups, dtype=torch.float32)
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
    silu: bool,
    need_dx: bool,
    need_sums: bool,
) -> tuple[Tensor, Tensor]:
    """dx (empty unless needed) and the sums A, B and, with shift_in, dx: float32 [2 or 3, N, C]."""
    dx, sums = _allocate_gradients(x, shift_in, need_dx, need_sums)
    (samples, channels), groups = x.shape[:2], means.shape[1]
    if x.numel():
        sizes = (groups, channels // groups, x[0, 0].numel())
        *tile, warps = plan_backward(*sizes[1:])
        sums_a, sums_b, sums_dx = (*sums.unbind(0), None, None, None)[:3]
        with torch.cuda.device_of(x):
            _backward_kernel[(samples * groups,)](
                dy, x, weight, bias, shift_in, scale, shift, means, rstds,
                dx if need_dx else None, sums_a, sums_b, sums_dx,
                _stride(shift_in), _stride(scale), _stride(shift),
                *sizes, silu, *tile, num_warps=warps, enable_fp_fusion=True,
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
    ctx.groups, ctx.eps, ctx.silu = inputs[6:]


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
    return (*grads, None, None, None)  # groups, eps, silu


def _kernel_gradients(
    ctx: Any, dy: Tensor, inputs: list[Tensor | None], means: Tensor, rstds: Tensor
) -> list[Tensor | None]:
    needs = ctx.needs_input_grad[:6]
    dx, sums = _backward(dy.contiguous(), *inputs, means, rstds, ctx.silu, needs[0], any(needs[1:]))
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
        shift_in=shift_in, scale=scale, shift=shift, silu=ctx.silu,
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
    impl: Impl = "auto",
) -> Tensor:
    """`silu((norm(x + shift_in) * weight + bias) * (1 + scale) + shift)`, every part but the norm
    optional.

    Args:
        x: [N, C, *], any trailing dimensions. float32, bfloat16 or float16; the reference also
            takes float64. The kernel works on contiguous (NCHW) memory and copies any other.
        weight, bias: [C] or None.
        groups: of C / groups consecutive channels; divides C.
        eps: added to the variance (biased) under the root.
        shift_in: [N, C] or None, added before the norm.
        scale, shift: [N, C] or None, applied after weight and bias. Rows may be strided: halves of
            one [N, 2 C] projection are read in place.
        silu: whether to end with `z * sigmoid(z)`.
        impl: see `fasttrain_kernels.dispatch.resolve`.

    Returns:
        Shape and dtype of x. Statistics, sums and everything between load and store are float32,
        also with parameters of another dtype than x.

    Gradients: for x, weight, bias, shift_in, scale and shift, only those that need one are
    computed; first order by the kernel, higher orders by the reference's formula.

    Raises:
        ValueError: shapes that do not fit, groups that do not divide C, an `impl` that cannot run.
    """
    _check_shapes(x, weight, bias, groups, shift_in, scale, shift)
    if resolve(impl, x) == "reference":
        return group_norm_silu_reference(
            x, weight, bias, groups=groups, eps=eps,
            shift_in=shift_in, scale=scale, shift=shift, silu=silu,
        )  # fmt: skip
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    shift_in, scale, shift = (_dense_rows(t) for t in (shift_in, scale, shift))
    return _forward(x.contiguous(), weight, bias, shift_in, scale, shift, groups, eps, silu)[0]


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
