"""The Triton kernels of `group_norm` in its whole form, and what both forms share; the formulas and
their names are in that file's docstring.

Whole: a program owns all pixels of one group or, in channels_last, of GT groups side by side, in
a tile of BLOCK_C channels by BLOCK_P pixels. FITS: one tile holds them, is read once and stays in
registers; otherwise two loops over tiles, and the second read comes from the cache.

The split form is in `_group_norm_split.py`.

Both memory formats run through the same code: LAST means channels_last, and the strides follow.
Pointers of absent inputs are None, and the branches on them vanish when a kernel is compiled (in
place: before Triton 3.7 no function that a kernel calls may return None). Sizes are constants of
the kernel: only so does Triton see addresses that are aligned for 128-bit loads.
"""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from fasttrain_kernels._tiles import sigmoid
from fasttrain_kernels.dispatch import tl, triton


@triton.jit
def _wide(places, REACH: tl.constexpr):
    """Places by which offsets up to REACH are worked out: of 64 bits only where 32 do not do, for
    they cost registers."""
    return places.to(tl.int64) if REACH >= 2**31 else places


@triton.jit
def _tile(
    c0, p0, WIDTH: tl.constexpr, C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """Offsets and mask of the tile from channel c0 (of WIDTH) and pixel p0 on, within a sample."""
    rows = (c0 + tl.arange(0, BLOCK_C))[:, None]
    columns = (p0 + tl.arange(0, BLOCK_P))[None, :]
    live = (rows < WIDTH) & (columns < HW)
    reach: tl.constexpr = C * HW + (BLOCK_C + C) * BLOCK_P + BLOCK_C * HW  # of the tile's end
    rows, columns = _wide(rows, reach), _wide(columns, reach)
    offsets = rows + columns * C if LAST else rows * HW + columns
    return offsets.to(tl.int64), live


@triton.jit
def _rows(pointer, c0, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """One float32 value for each channel of the tile."""
    rows = c0 + tl.arange(0, BLOCK_C)
    return tl.load(pointer + rows, mask=rows < WIDTH, other=0.0).to(tl.float32)


@triton.jit
def _load_h(x, shift_in, offsets, live, c0, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """x + shift_in in float32; without meaning outside the mask."""
    h = tl.load(x + offsets, mask=live, other=0.0).to(tl.float32)
    if shift_in is not None:
        h += _rows(shift_in, c0, WIDTH, BLOCK_C)[:, None]
    return h


@triton.jit
def _affine(weight, bias, scale, shift, c0, WIDTH: tl.constexpr, BLOCK_C: tl.constexpr):
    """k and b of each channel of the tile, [BLOCK_C, 1]."""
    k = tl.full([BLOCK_C], 1.0, tl.float32)
    b = tl.zeros([BLOCK_C], tl.float32)
    if weight is not None:
        k = _rows(weight, c0, WIDTH, BLOCK_C)
    if bias is not None:
        b = _rows(bias, c0, WIDTH, BLOCK_C)
    if scale is not None:
        factor = 1.0 + _rows(scale, c0, WIDTH, BLOCK_C)
        k *= factor
        b *= factor
    if shift is not None:
        b += _rows(shift, c0, WIDTH, BLOCK_C)
    return k[:, None], b[:, None]


@triton.jit
def _over_group(sums, CG: tl.constexpr, GT: tl.constexpr, BLOCK_C: tl.constexpr):
    """Sums of channels [BLOCK_C] -> the sum of each one's group: a number for one group, else
    [BLOCK_C, 1]."""
    # One result, because the compiler takes every return for a type of its own.
    if GT == 1:
        result = tl.sum(sums)
    else:
        group = tl.arange(0, BLOCK_C) // CG
        column = tl.zeros([BLOCK_C], tl.float32)
        for g in tl.static_range(GT):
            column = tl.where(group == g, tl.sum(tl.where(group == g, sums, 0.0)), column)
        result = column[:, None]
    return result


@triton.jit
def _activate(z, ACTIVATION: tl.constexpr):
    if ACTIVATION == "silu":
        result = z * sigmoid(z)
    elif ACTIVATION == "leaky_relu":
        result = tl.where(z > 0, z, 0.2 * z)
    else:
        result = z
    return result


@triton.jit
def _xhat_and_dz(h, dy, mean, rstd, k, b, live, ACTIVATION: tl.constexpr):
    """Both zero outside the mask; dy is so already."""
    xhat = tl.where(live, (h - mean) * rstd, 0.0)
    z = k * xhat + b
    if ACTIVATION == "silu":
        s = sigmoid(z)
        dz = dy * (s * (1.0 + z * (1.0 - s)))
    elif ACTIVATION == "leaky_relu":
        dz = tl.where(z > 0, dy, 0.2 * dy)
    else:
        dz = dy
    return xhat, dz


# ------------------------------------------------------------------------------------------ whole


@triton.jit
def forward_kernel(
    x, weight, bias, shift_in, scale, shift, y, means, rstds,
    shift_in_stride, scale_stride, shift_stride, eps,
    GROUPS: tl.constexpr, GT: tl.constexpr, CG: tl.constexpr, HW: tl.constexpr,
    LAST: tl.constexpr, ACTIVATION: tl.constexpr,
    FITS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = GROUPS * CG
    WIDTH: tl.constexpr = GT * CG
    tiles: tl.constexpr = GROUPS // GT
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    channel = tl.program_id(0) % tiles * WIDTH
    here = sample * (C * HW) + _wide(channel, C * HW) * (1 if LAST else HW)
    x, y = x + here, y + here
    weight = None if weight is None else weight + channel
    bias = None if bias is None else bias + channel
    shift_in = None if shift_in is None else shift_in + (sample * shift_in_stride + channel)
    scale = None if scale is None else scale + (sample * scale_stride + channel)
    shift = None if shift is None else shift + (sample * shift_stride + channel)
    size: tl.constexpr = CG * HW

    # Sums of differences to the first tile's mean: nothing cancels when |mean| >> deviation.
    offsets, live = _tile(0, 0, WIDTH, C, HW, LAST, BLOCK_C, BLOCK_P)
    first = _load_h(x, shift_in, offsets, live, 0, WIDTH, BLOCK_C)
    pivot = _over_group(tl.sum(tl.where(live, first, 0.0), axis=1), CG, GT, BLOCK_C)
    pivot /= min(CG, BLOCK_C) * min(HW, BLOCK_P)
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    square = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for c0 in range(0, WIDTH, BLOCK_C):
        for p0 in range(0, HW, BLOCK_P):
            offsets, live = _tile(c0, p0, WIDTH, C, HW, LAST, BLOCK_C, BLOCK_P)
            h = first if FITS else _load_h(x, shift_in, offsets, live, c0, WIDTH, BLOCK_C)
            difference = tl.where(live, h - pivot, 0.0)
            total += difference
            square += difference * difference
    delta = _over_group(tl.sum(total, axis=1), CG, GT, BLOCK_C) / size
    mean = pivot + delta
    variance = _over_group(tl.sum(square, axis=1), CG, GT, BLOCK_C) / size - delta * delta
    variance = tl.maximum(variance, 0.0, propagate_nan=tl.PropagateNan.ALL)
    rstd = 1.0 / tl.sqrt(variance + eps)
    if GT == 1:
        tl.store(means + tl.program_id(0), mean)
        tl.store(rstds + tl.program_id(0), rstd)
    else:
        rows = tl.arange(0, BLOCK_C)[:, None]
        first_of_group = (rows % CG == 0) & (rows < WIDTH)
        group = sample * GROUPS + (channel + rows) // CG
        tl.store(means + group, mean, mask=first_of_group)
        tl.store(rstds + group, rstd, mask=first_of_group)

    for c0 in range(0, WIDTH, BLOCK_C):
        k, b = _affine(weight, bias, scale, shift, c0, WIDTH, BLOCK_C)
        for p0 in range(0, HW, BLOCK_P):
            offsets, live = _tile(c0, p0, WIDTH, C, HW, LAST, BLOCK_C, BLOCK_P)
            h = first if FITS else _load_h(x, shift_in, offsets, live, c0, WIDTH, BLOCK_C)
            z = _activate((h - mean) * (k * rstd) + b, ACTIVATION)
            tl.store(y + offsets, z.to(y.dtype.element_ty), mask=live)


@triton.jit
def _load_xhat_dz(
    x, dy, shift_in, c0, p0, mean, rstd, k, b,
    WIDTH: tl.constexpr, C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr,
    ACTIVATION: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    offsets, live = _tile(c0, p0, WIDTH, C, HW, LAST, BLOCK_C, BLOCK_P)
    dy = tl.load(dy + offsets, mask=live, other=0.0).to(tl.float32)
    h = _load_h(x, shift_in, offsets, live, c0, WIDTH, BLOCK_C)
    return _xhat_and_dz(h, dy, mean, rstd, k, b, live, ACTIVATION)


@triton.jit
def backward_kernel(
    dy, x, weight, bias, shift_in, scale, shift, means, rstds, dfork, dx, sums_a, sums_b, sums_dx,
    shift_in_stride, scale_stride, shift_stride,
    GROUPS: tl.constexpr, GT: tl.constexpr, CG: tl.constexpr, HW: tl.constexpr,
    LAST: tl.constexpr, ACTIVATION: tl.constexpr,
    FITS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    C: tl.constexpr = GROUPS * CG
    WIDTH: tl.constexpr = GT * CG
    tiles: tl.constexpr = GROUPS // GT
    sample = (tl.program_id(0) // tiles).to(tl.int64)
    channel = tl.program_id(0) % tiles * WIDTH
    here = sample * (C * HW) + _wide(channel, C * HW) * (1 if LAST else HW)
    dy, x, dx = dy + here, x + here, None if dx is None else dx + here
    dfork = None if dfork is None else dfork + here
    weight = None if weight is None else weight + channel
    bias = None if bias is None else bias + channel
    shift_in = None if shift_in is None else shift_in + (sample * shift_in_stride + channel)
    scale = None if scale is None else scale + (sample * scale_stride + channel)
    shift = None if shift is None else shift + (sample * shift_stride + channel)
    sums = sample * C + channel
    if GT == 1:
        mean, rstd = tl.load(means + tl.program_id(0)), tl.load(rstds + tl.program_id(0))
    else:
        own = tl.arange(0, BLOCK_C)[:, None]
        group = sample * GROUPS + (channel + own) // CG
        mean = tl.load(means + group, mask=own < WIDTH, other=0.0)
        rstd = tl.load(rstds + group, mask=own < WIDTH, other=0.0)
    size: tl.constexpr = CG * HW
    if FITS:
        k, b = _affine(weight, bias, scale, shift, 0, WIDTH, BLOCK_C)
        first_xhat, first_dz = _load_xhat_dz(
            x, dy, shift_in, 0, 0, mean, rstd, k, b,
            WIDTH, C, HW, LAST, ACTIVATION, BLOCK_C, BLOCK_P,
        )  # fmt: skip

    # A and B of every channel, and their means over the group weighted by k
    slope = _over_group(tl.zeros([BLOCK_C], tl.float32), CG, GT, BLOCK_C)
    offset = slope
    for c0 in range(0, WIDTH, BLOCK_C):
        rows = c0 + tl.arange(0, BLOCK_C)
        k, b = _affine(weight, bias, scale, shift, c0, WIDTH, BLOCK_C)
        tile_a = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
        tile_b = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
        for p0 in range(0, HW, BLOCK_P):
            if FITS:
                xhat, dz = first_xhat, first_dz
            else:
                xhat, dz = _load_xhat_dz(
                    x, dy, shift_in, c0, p0, mean, rstd, k, b,
                    WIDTH, C, HW, LAST, ACTIVATION, BLOCK_C, BLOCK_P,
                )  # fmt: skip
            tile_a += dz * xhat
            tile_b += dz
        slope += _over_group(tl.sum(k * tile_a, axis=1), CG, GT, BLOCK_C) / size
        offset += _over_group(tl.sum(k * tile_b, axis=1), CG, GT, BLOCK_C) / size
        if sums_a is not None:
            tl.store(sums_a + sums + rows, tl.sum(tile_a, axis=1), mask=rows < WIDTH)
            tl.store(sums_b + sums + rows, tl.sum(tile_b, axis=1), mask=rows < WIDTH)

    if dx is not None or sums_dx is not None:
        for c0 in range(0, WIDTH, BLOCK_C):
            rows = c0 + tl.arange(0, BLOCK_C)
            k, b = _affine(weight, bias, scale, shift, c0, WIDTH, BLOCK_C)
            tile_dx = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
            for p0 in range(0, HW, BLOCK_P):
                offsets, live = _tile(c0, p0, WIDTH, C, HW, LAST, BLOCK_C, BLOCK_P)
                if FITS:
                    xhat, dz = first_xhat, first_dz
                else:
                    xhat, dz = _load_xhat_dz(
                        x, dy, shift_in, c0, p0, mean, rstd, k, b,
                        WIDTH, C, HW, LAST, ACTIVATION, BLOCK_C, BLOCK_P,
                    )  # fmt: skip
                gradient = rstd * (k * dz - offset - xhat * slope)
                if dx is not None:
                    whole = gradient
                    if dfork is not None:
                        whole += tl.load(dfork + offsets, mask=live, other=0.0).to(tl.float32)
                    tl.store(dx + offsets, whole.to(dx.dtype.element_ty), mask=live)
                if sums_dx is not None:
                    tile_dx += tl.where(live, gradient, 0.0)
            if sums_dx is not None:
                tl.store(sums_dx + sums + rows, tl.sum(tile_dx, axis=1), mask=rows < WIDTH)
