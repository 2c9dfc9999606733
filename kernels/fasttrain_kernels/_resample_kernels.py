"""The Triton kernels of `resample`; the formulas are in that file's docstring."""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from fasttrain_kernels._tiles import load_at, offsets_at, place
from fasttrain_kernels.dispatch import tl, triton

__all__ = ["down_kernel", "up_kernel"]

# A tile is BLOCK_C channels by BLOCK_P pixels, counted along the rows, of the smaller map of one
# sample; H and W are that map's. The other map's pixels that belong to it, twice as many along each
# axis, are read or written once; those the smooth filter shares with its neighbours come from the
# cache. LAST: channels_last, where every access is 128 bits wide along the channels. Contiguous
# maps are 128 bits wide along the pixels, two columns of the larger map side by side, split or
# interleaved in registers; only neighbouring columns of the smooth filter are single values.


@triton.jit
def down_kernel(
    x, y, factor,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr, SMOOTH: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    sample, c0, part = place(C, H * W, LAST, BLOCK_C, BLOCK_P)
    channels, first = c0 + tl.arange(0, BLOCK_C), part * BLOCK_P
    x, y = x + sample * (C * 4 * H * W), y + sample * (C * H * W)
    pixels = first + tl.arange(0, BLOCK_P)
    pairs = 2 * first + tl.arange(0, 2 * BLOCK_P)  # every column of every other row
    i, j = pixels // W, pixels % W
    total = tl.zeros([BLOCK_C, BLOCK_P], tl.float32)
    for t in tl.static_range(4 if SMOOTH else 2):
        row = t - 1 if SMOOTH else t
        if LAST:
            line = load_at(x, 2 * i + row, 2 * j, channels, C, 2 * H, 2 * W, LAST)
            line += load_at(x, 2 * i + row, 2 * j + 1, channels, C, 2 * H, 2 * W, LAST)
        else:
            rows, columns = pairs // (2 * W) * 2 + row, pairs % (2 * W)
            both = load_at(x, rows, columns, channels, C, 2 * H, 2 * W, LAST)
            even, odd = tl.split(tl.reshape(both, [BLOCK_C, BLOCK_P, 2]))
            line = even + odd
        if SMOOTH:
            line = 3 * line + load_at(x, 2 * i + row, 2 * j - 1, channels, C, 2 * H, 2 * W, LAST)
            line += load_at(x, 2 * i + row, 2 * j + 2, channels, C, 2 * H, 2 * W, LAST)
            line *= 3 if row == 0 or row == 1 else 1
        total += line
    offsets, live = offsets_at(i, j, channels, C, H, W, LAST)
    tl.store(y + offsets, (total * factor).to(y.dtype.element_ty), mask=live)


@triton.jit
def _columns(x, i, j, channels, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
             LAST: tl.constexpr, SMOOTH: tl.constexpr):  # fmt: skip
    """What pixel (i, j) gives the two columns 2 j and 2 j + 1."""
    centre = load_at(x, i, j, channels, C, H, W, LAST)
    if SMOOTH:
        left = 3 * centre + load_at(x, i, j - 1, channels, C, H, W, LAST)
        right = 3 * centre + load_at(x, i, j + 1, channels, C, H, W, LAST)
    else:
        left, right = centre, centre
    return left, right


@triton.jit
def _store_columns(y, left, right, row, first, channels, C: tl.constexpr, H: tl.constexpr,
                   W: tl.constexpr, LAST: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """Columns 2 j and 2 j + 1 of row 2 i + `row` of the larger map."""
    left, right = left.to(y.dtype.element_ty), right.to(y.dtype.element_ty)
    if LAST:
        pixels = first + tl.arange(0, BLOCK_P)
        i, j = pixels // W, pixels % W
        offsets, live = offsets_at(2 * i + row, 2 * j, channels, C, 2 * H, 2 * W, LAST)
        tl.store(y + offsets, left, mask=live)
        tl.store(y + offsets + C, right, mask=live)
    else:
        pairs = 2 * first + tl.arange(0, 2 * BLOCK_P)
        rows, columns = pairs // (2 * W) * 2 + row, pairs % (2 * W)
        offsets, live = offsets_at(rows, columns, channels, C, 2 * H, 2 * W, LAST)
        tl.store(y + offsets, tl.interleave(left, right), mask=live)


@triton.jit
def up_kernel(
    x, y, factor,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, LAST: tl.constexpr, SMOOTH: tl.constexpr,
    BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    sample, c0, part = place(C, H * W, LAST, BLOCK_C, BLOCK_P)
    channels, first = c0 + tl.arange(0, BLOCK_C), part * BLOCK_P
    x, y = x + sample * (C * H * W), y + sample * (C * 4 * H * W)
    pixels = first + tl.arange(0, BLOCK_P)
    i, j = pixels // W, pixels % W
    left, right = _columns(x, i, j, channels, C, H, W, LAST, SMOOTH)
    left, right = left * factor, right * factor
    for row in tl.static_range(2):
        if SMOOTH:
            other = i + 1 if row else i - 1
            far_left, far_right = _columns(x, other, j, channels, C, H, W, LAST, SMOOTH)
            far_left, far_right = 3 * left + far_left * factor, 3 * right + far_right * factor
        else:
            far_left, far_right = left, right
        _store_columns(y, far_left, far_right, row, first, channels, C, H, W, LAST, BLOCK_P)
