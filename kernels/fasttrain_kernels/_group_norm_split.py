"""The Triton kernels of `group_norm` in its split form: statistics of chunks of pixels, a program a
group to combine them, and a pass to apply them."""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from fasttrain_kernels._group_norm_kernels import (
    _activate,
    _affine,
    _load_h,
    _load_xhat_dz,
    _rows,
    _tile,
)
from fasttrain_kernels.dispatch import tl, triton
from fasttrain_kernels.statistics import store_statistics


@triton.jit
def _block(C: tl.constexpr, HW: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):
    """This program's sample, first pixel's block and first channel."""
    blocks: tl.constexpr = (HW + BLOCK_P - 1) // BLOCK_P
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    return sample, tl.program_id(0) % blocks, tl.program_id(1) * BLOCK_C


@triton.jit
def _of_group(pointer, sample, c0, GROUPS: tl.constexpr, CG: tl.constexpr, BLOCK_C: tl.constexpr):
    """The value of each channel's group, [BLOCK_C, 1]."""
    channels = c0 + tl.arange(0, BLOCK_C)
    values = tl.load(
        pointer + sample * GROUPS + channels // CG, mask=channels < GROUPS * CG, other=0.0
    )
    return values[:, None]


@triton.jit
def statistics_kernel(
    x, statistics,
    C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    sample, chunk, c0 = _block(C, HW, BLOCK_C, BLOCK_P)
    offsets, live = _tile(c0, chunk * BLOCK_P, C, C, HW, LAST, BLOCK_C, BLOCK_P)
    values = tl.load(x + sample * (C * HW) + offsets, mask=live, other=0.0).to(tl.float32)
    store_statistics(statistics, values, live, sample, chunk, c0, C, HW, BLOCK_C, BLOCK_P)


@triton.jit
def _chunks(
    statistics, sample, first, channel, rows,
    C: tl.constexpr, CG: tl.constexpr, HW: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Mean, sum of squared deviations and pixels of BLOCK_J chunks of a group's channels."""
    chunks: tl.constexpr = (HW + CHUNK - 1) // CHUNK
    chunk = first + tl.arange(0, BLOCK_J)
    live = (rows < CG)[:, None] & (chunk < chunks)[None, :]
    at = statistics + ((sample * chunks + chunk[None, :]) * C + channel + rows[:, None]) * 2
    pixels = tl.minimum(HW - chunk * CHUNK, CHUNK).to(tl.float32)
    count = tl.where(live, pixels[None, :], 0.0)
    return tl.load(at, mask=live, other=0.0), tl.load(at + 1, mask=live, other=0.0), count


@triton.jit
def combine_kernel(
    statistics, shift_in, means, rstds, shift_in_stride, eps,
    GROUPS: tl.constexpr, CG: tl.constexpr, HW: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """Mean and rstd of one group from its channels' chunks, by Chan's formula."""
    C: tl.constexpr = GROUPS * CG
    chunks: tl.constexpr = (HW + CHUNK - 1) // CHUNK
    sample = (tl.program_id(0) // GROUPS).to(tl.int64)
    channel = tl.program_id(0) % GROUPS * CG
    rows = tl.arange(0, BLOCK_C)
    size: tl.constexpr = CG * HW
    pivot = tl.load(statistics + (sample * chunks * C + channel) * 2)
    move = tl.zeros([BLOCK_C], tl.float32)
    if shift_in is not None:
        move = _rows(shift_in + sample * shift_in_stride + channel, 0, CG, BLOCK_C)
    total = tl.zeros([BLOCK_C, BLOCK_J], tl.float32)
    for first in range(0, chunks, BLOCK_J):
        mean, _, count = _chunks(
            statistics, sample, first, channel, rows, C, CG, HW, CHUNK, BLOCK_J
        )
        total += count * (mean + move[:, None] - pivot)
    whole = pivot + tl.sum(total) / size
    square = tl.zeros([BLOCK_C, BLOCK_J], tl.float32)
    for first in range(0, chunks, BLOCK_J):
        mean, m2, count = _chunks(
            statistics, sample, first, channel, rows, C, CG, HW, CHUNK, BLOCK_J
        )
        difference = mean + move[:, None] - whole
        square += m2 + count * difference * difference
    tl.store(means + tl.program_id(0), whole)
    tl.store(rstds + tl.program_id(0), 1.0 / tl.sqrt(tl.sum(square) / size + eps))


@triton.jit
def apply_kernel(
    x, weight, bias, shift_in, scale, shift, y, means, rstds,
    shift_in_stride, scale_stride, shift_stride,
    GROUPS: tl.constexpr, CG: tl.constexpr, HW: tl.constexpr,
    LAST: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = GROUPS * CG
    sample, block, c0 = _block(C, HW, BLOCK_C, BLOCK_P)
    shift_in = None if shift_in is None else shift_in + sample * shift_in_stride
    scale = None if scale is None else scale + sample * scale_stride
    shift = None if shift is None else shift + sample * shift_stride
    mean = _of_group(means, sample, c0, GROUPS, CG, BLOCK_C)
    rstd = _of_group(rstds, sample, c0, GROUPS, CG, BLOCK_C)
    k, b = _affine(weight, bias, scale, shift, c0, C, BLOCK_C)
    offsets, live = _tile(c0, block * BLOCK_P, C, C, HW, LAST, BLOCK_C, BLOCK_P)
    offsets += sample * (C * HW)
    h = _load_h(x, shift_in, offsets, live, c0, C, BLOCK_C)
    z = _activate((h - mean) * (k * rstd) + b, ACTIVATION)
    tl.store(y + offsets, z.to(y.dtype.element_ty), mask=live)


@triton.jit
def sums_kernel(
    dy, x, weight, bias, shift_in, scale, shift, means, rstds, partial,
    shift_in_stride, scale_stride, shift_stride,
    GROUPS: tl.constexpr, CG: tl.constexpr, HW: tl.constexpr,
    LAST: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Sums of dz xhat, dz and xhat of every channel over one block of pixels: [N, blocks, 3, C]."""
    C: tl.constexpr = GROUPS * CG
    blocks: tl.constexpr = (HW + BLOCK_P - 1) // BLOCK_P
    sample, block, c0 = _block(C, HW, BLOCK_C, BLOCK_P)
    shift_in = None if shift_in is None else shift_in + sample * shift_in_stride
    scale = None if scale is None else scale + sample * scale_stride
    shift = None if shift is None else shift + sample * shift_stride
    mean = _of_group(means, sample, c0, GROUPS, CG, BLOCK_C)
    rstd = _of_group(rstds, sample, c0, GROUPS, CG, BLOCK_C)
    k, b = _affine(weight, bias, scale, shift, c0, C, BLOCK_C)
    here = sample * (C * HW)
    xhat, dz = _load_xhat_dz(
        x + here, dy + here, shift_in, c0, block * BLOCK_P, mean, rstd, k, b,
        C, C, HW, LAST, ACTIVATION, BLOCK_C, BLOCK_P,
    )  # fmt: skip
    channels = c0 + tl.arange(0, BLOCK_C)
    at = partial + (sample * blocks + block) * 3 * C + channels
    tl.store(at, tl.sum(dz * xhat, axis=1), mask=channels < C)
    tl.store(at + C, tl.sum(dz, axis=1), mask=channels < C)
    tl.store(at + 2 * C, tl.sum(xhat, axis=1), mask=channels < C)


@triton.jit
def combine_backward_kernel(
    partial, weight, scale, rstds, slopes, offsets, sums_a, sums_b, sums_dx, scale_stride,
    GROUPS: tl.constexpr, CG: tl.constexpr, HW: tl.constexpr, BLOCKS: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_J: tl.constexpr,
):  # fmt: skip
    """The sums of one group's channels over all pixels, and what its pixels have in common: the
    means of k A and k B. The sum of dx follows from them without another pass."""
    C: tl.constexpr = GROUPS * CG
    sample = (tl.program_id(0) // GROUPS).to(tl.int64)
    channel = tl.program_id(0) % GROUPS * CG
    rows, block = tl.arange(0, BLOCK_C), tl.arange(0, BLOCK_J)
    live = (rows < CG)[:, None] & (block < BLOCKS)[None, :]
    at = partial + (sample * BLOCKS + block[None, :]) * 3 * C + channel + rows[:, None]
    a = tl.sum(tl.load(at, mask=live, other=0.0), axis=1)
    b = tl.sum(tl.load(at + C, mask=live, other=0.0), axis=1)
    sum_xhat = tl.sum(tl.load(at + 2 * C, mask=live, other=0.0), axis=1)
    here = sample * C + channel + rows
    k = tl.full([BLOCK_C], 1.0, tl.float32)
    if weight is not None:
        k = _rows(weight + channel, 0, CG, BLOCK_C)
    if scale is not None:
        k *= 1.0 + _rows(scale + sample * scale_stride + channel, 0, CG, BLOCK_C)
    slope, offset = tl.sum(k * a) / (CG * HW), tl.sum(k * b) / (CG * HW)
    tl.store(slopes + tl.program_id(0), slope)
    tl.store(offsets + tl.program_id(0), offset)
    if sums_a is not None:
        tl.store(sums_a + here, a, mask=rows < CG)
        tl.store(sums_b + here, b, mask=rows < CG)
    if sums_dx is not None:
        rstd = tl.load(rstds + tl.program_id(0))
        tl.store(sums_dx + here, rstd * (k * b - HW * offset - sum_xhat * slope), mask=rows < CG)


@triton.jit
def apply_backward_kernel(
    dy, x, weight, bias, shift_in, scale, shift, means, rstds, slopes, offsets, dfork, dx,
    shift_in_stride, scale_stride, shift_stride,
    GROUPS: tl.constexpr, CG: tl.constexpr, HW: tl.constexpr,
    LAST: tl.constexpr, ACTIVATION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = GROUPS * CG
    sample, block, c0 = _block(C, HW, BLOCK_C, BLOCK_P)
    shift_in = None if shift_in is None else shift_in + sample * shift_in_stride
    scale = None if scale is None else scale + sample * scale_stride
    shift = None if shift is None else shift + sample * shift_stride
    mean = _of_group(means, sample, c0, GROUPS, CG, BLOCK_C)
    rstd = _of_group(rstds, sample, c0, GROUPS, CG, BLOCK_C)
    slope = _of_group(slopes, sample, c0, GROUPS, CG, BLOCK_C)
    offset = _of_group(offsets, sample, c0, GROUPS, CG, BLOCK_C)
    k, b = _affine(weight, bias, scale, shift, c0, C, BLOCK_C)
    here = sample * (C * HW)
    xhat, dz = _load_xhat_dz(
        x + here, dy + here, shift_in, c0, block * BLOCK_P, mean, rstd, k, b,
        C, C, HW, LAST, ACTIVATION, BLOCK_C, BLOCK_P,
    )  # fmt: skip
    place, live = _tile(c0, block * BLOCK_P, C, C, HW, LAST, BLOCK_C, BLOCK_P)
    gradient = rstd * (k * dz - offset - xhat * slope)
    if dfork is not None:
        gradient += tl.load(dfork + here + place, mask=live, other=0.0).to(tl.float32)
    tl.store(dx + here + place, gradient.to(dx.dtype.element_ty), mask=live)


@triton.jit(do_not_specialize=("samples",))
def small_kernel(
    sums_a, sums_b, sums_dx, weight, bias, scale, dweight, dbias, dshift_in, dscale, dshift,
    scale_stride, samples,
    C: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """The gradients of all parameters from A, B and the sums of dx, BLOCK_C channels a program, the
    batch in a fixed order."""
    channel = tl.program_id(0) * BLOCK_C + tl.arange(0, BLOCK_C)
    inside = channel < C
    k = tl.full([BLOCK_C], 1.0, tl.float32)
    offset = tl.zeros([BLOCK_C], tl.float32)
    if weight is not None:
        k = tl.load(weight + channel, mask=inside, other=0.0).to(tl.float32)
    if bias is not None:
        offset = tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    total_a = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    total_b = tl.zeros([BLOCK_N, BLOCK_C], tl.float32)
    for n0 in range(0, samples, BLOCK_N):
        sample = (n0 + tl.arange(0, BLOCK_N))[:, None]
        live = (sample < samples) & inside[None, :]
        at = sample.to(tl.int64) * C + channel[None, :]
        a = tl.load(sums_a + at, mask=live, other=0.0)
        b = tl.load(sums_b + at, mask=live, other=0.0)
        if dshift_in is not None:
            dx = tl.load(sums_dx + at, mask=live, other=0.0)
            tl.store(dshift_in + at, dx.to(dshift_in.dtype.element_ty), mask=live)
        if dscale is not None:
            value = k[None, :] * a + offset[None, :] * b
            tl.store(dscale + at, value.to(dscale.dtype.element_ty), mask=live)
        if dshift is not None:
            tl.store(dshift + at, b.to(dshift.dtype.element_ty), mask=live)
        if scale is not None:
            there = scale + sample.to(tl.int64) * scale_stride + channel[None, :]
            factor = 1.0 + tl.load(there, mask=live, other=0.0).to(tl.float32)
            a *= factor
            b *= factor
        total_a += a
        total_b += b
    if dweight is not None:
        value = tl.sum(total_a, axis=0)
        tl.store(dweight + channel, value.to(dweight.dtype.element_ty), mask=inside)
    if dbias is not None:
        value = tl.sum(total_b, axis=0)
        tl.store(dbias + channel, value.to(dbias.dtype.element_ty), mask=inside)
