"""The Triton kernels of `image_prep`; the formulas are in that file's docstring."""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from fasttrain_kernels._bilinear import between, first, share
from fasttrain_kernels.dispatch import tl, triton

__all__ = ["adjoint_kernel", "forward_kernel"]

# Forward, a program has BLOCK values of a result as they lie in memory, [OH, OW, 3] of one sample:
# stores are wide, and what is read is small and stays in the cache. Backward, BLOCK values of an
# image as they lie, [C, H, W]. The second network's pointers are None where there is one only.


@triton.jit
def _of_channel(c, first_, second, third):
    return tl.where(c == 0, first_, tl.where(c == 1, second, third))


@triton.jit
def forward_kernel(
    images, y0, y1, ratio_h, offset_h, ratio_w, offset_w,
    a00, a01, a02, b00, b01, b02, a10, a11, a12, b10, b11, b12,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    values: tl.constexpr = 3 * OH * OW
    blocks: tl.constexpr = (values + BLOCK - 1) // BLOCK
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    element = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    live = element < values
    c, pixel = element % 3, element // 3
    top, bottom, v = between(pixel // OW, ratio_h, offset_h, H)
    left, right, h = between(pixel % OW, ratio_w, offset_w, W)
    here = images + sample * (C * H * W) + (c * (H * W) if C == 3 else 0)
    upper = (1.0 - h) * tl.load(here + top * W + left, mask=live, other=0).to(tl.float32)
    upper += h * tl.load(here + top * W + right, mask=live, other=0).to(tl.float32)
    lower = (1.0 - h) * tl.load(here + bottom * W + left, mask=live, other=0).to(tl.float32)
    lower += h * tl.load(here + bottom * W + right, mask=live, other=0).to(tl.float32)
    x = (1.0 - v) * upper + v * lower
    place = sample * values + element
    y = x * _of_channel(c, a00, a01, a02) + _of_channel(c, b00, b01, b02)
    tl.store(y0 + place, y.to(y0.dtype.element_ty), mask=live)
    if y1 is not None:
        y = x * _of_channel(c, a10, a11, a12) + _of_channel(c, b10, b11, b12)
        tl.store(y1 + place, y.to(y1.dtype.element_ty), mask=live)


@triton.jit
def _gather(dy, place, live, a):
    return a * tl.load(dy + place, mask=live, other=0.0).to(tl.float32)


@triton.jit
def adjoint_kernel(
    dy0, dy1, dx, ratio_h, offset_h, inverse_h, ratio_w, offset_w, inverse_w,
    a00, a01, a02, a10, a11, a12,
    C: tl.constexpr, H: tl.constexpr, W: tl.constexpr, OH: tl.constexpr, OW: tl.constexpr,
    REACH_H: tl.constexpr, REACH_W: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    values: tl.constexpr = C * H * W
    blocks: tl.constexpr = (values + BLOCK - 1) // BLOCK
    sample = (tl.program_id(0) // blocks).to(tl.int64)
    element = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    exists = element < values
    c, pixel = element // (H * W), element % (H * W)
    rows, columns = pixel // W, pixel % W
    row0 = first(rows, ratio_h, offset_h, inverse_h)
    column0 = first(columns, ratio_w, offset_w, inverse_w)
    there = sample * (3 * OH * OW)
    total = tl.zeros([BLOCK], tl.float32)
    for a in range(REACH_H):
        vertical = share(row0 + a, rows, ratio_h, offset_h, H, OH)
        for b in range(REACH_W):
            weight = vertical * share(column0 + b, columns, ratio_w, offset_w, W, OW)
            live = exists & (weight > 0)
            place = there + ((row0 + a) * OW + column0 + b) * 3
            value = tl.zeros([BLOCK], tl.float32)
            for k in tl.static_range(3 if C == 1 else 1):
                channel = c + k
                if dy0 is not None:
                    value += _gather(
                        dy0, place + channel, live, _of_channel(channel, a00, a01, a02)
                    )
                if dy1 is not None:
                    value += _gather(
                        dy1, place + channel, live, _of_channel(channel, a10, a11, a12)
                    )
            total += weight * value
    tl.store(dx + sample * values + element, total.to(dx.dtype.element_ty), mask=exists)
