"""The Triton kernel of `counter_random`: Philox and what becomes of its words; the formulas are in
that file's docstring."""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from fasttrain_kernels.dispatch import tl, triton

__all__ = ["kernel"]


@triton.jit
def _philox(c0, c1, c2, c3, k0, k1):
    """The ten rounds on uint32, which wraps as the definition asks; words that all blocks share may
    be scalars. Sums and products say that they wrap: Triton's debug mode would stop there."""
    for _ in tl.static_range(10):
        high0, low0 = tl.umulhi(c0, 0xD2511F53), tl.mul(c0, 0xD2511F53, sanitize_overflow=False)
        high1, low1 = tl.umulhi(c2, 0xCD9E8D57), tl.mul(c2, 0xCD9E8D57, sanitize_overflow=False)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0 = tl.add(k0, 0x9E3779B9, sanitize_overflow=False)
        k1 = tl.add(k1, 0xBB67AE85, sanitize_overflow=False)
    return c0, c1, c2, c3


@triton.jit
def _box_muller(u, t):
    """Two normals from two words, on the same rounded uniform and angle as in torch: at the largest
    radius the angle's rounding alone is worth 4e-6. The angle is reduced to |x| <= pi / 4 by
    quarter turns in two parts, the first of 8 bits, so that its multiples are exact; there the
    series up to x^9 and x^10 are below 2e-9 off. The library's sine and cosine would bring a table
    for huge angles along, in local memory."""
    radius = tl.sqrt(-2.0 * tl.log(u.to(tl.float32) * 2.0**-32 + 2.0**-33))
    angle = t.to(tl.float32) * (6.283185307179586 * 2.0**-32)
    quarter = (angle * 0.6366197723675814 + 0.5).to(tl.int32)
    turned = quarter.to(tl.float32)
    x = tl.fma(-turned, 1.5703125, angle)  # outright, lest the angle's product be fused instead
    x = tl.fma(-turned, 4.838267948966192e-4, x)
    z = x * x
    sine = x * (1 + z * (-1 / 6 + z * (1 / 120 + z * (-1 / 5040 + z * (1 / 362880)))))
    cosine = z * (1 / 24 + z * (-1 / 720 + z * (1 / 40320 + z * (-1 / 3628800))))
    cosine = 1 + z * (cosine - 0.5)
    swapped = quarter % 2 == 1
    first, second = tl.where(swapped, -sine, cosine), tl.where(swapped, cosine, sine)
    sign = tl.where((quarter & 2) == 2, -1.0, 1.0)
    return radius * sign * first, radius * sign * second


# A seed or stream must not compile the kernel anew because it is 1 or a multiple of 16.
@triton.jit(do_not_specialize=("seed_low", "seed_high", "stream"))
def kernel(
    indices, out, seed_low, seed_high, stream, numel,
    NORMAL: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """BLOCK blocks of one sample: four values each, side by side, so that stores are wide. The
    words of seed and stream are int32 of the same bits: that type does not depend on the value."""
    tiles = (numel - 1) // (4 * BLOCK) + 1  # cdiv adds first, beyond int32 just below 2^31
    sample = tl.program_id(0) // tiles
    first = tl.program_id(0) % tiles * BLOCK
    index = tl.load(indices + sample)
    block = (first + tl.arange(0, BLOCK)).to(tl.uint32)  # 2^32 at most, also where numel is int64
    w0, w1, w2, w3 = _philox(
        block, stream.to(tl.uint32, bitcast=True),
        index.to(tl.uint32), (index >> 32).to(tl.uint32),
        seed_low.to(tl.uint32, bitcast=True), seed_high.to(tl.uint32, bitcast=True),
    )  # fmt: skip
    if NORMAL:
        v0, v1 = _box_muller(w0, w1)
        v2, v3 = _box_muller(w2, w3)
    else:
        v0 = (w0 >> (32 - BITS)).to(tl.float32) * 2.0**-BITS
        v1 = (w1 >> (32 - BITS)).to(tl.float32) * 2.0**-BITS
        v2 = (w2 >> (32 - BITS)).to(tl.float32) * 2.0**-BITS
        v3 = (w3 >> (32 - BITS)).to(tl.float32) * 2.0**-BITS
    values = tl.interleave(tl.interleave(v0, v2), tl.interleave(v1, v3))
    element = 4 * first + tl.arange(0, 4 * BLOCK)
    place = out + sample.to(tl.int64) * numel + element
    tl.store(place, values.to(out.dtype.element_ty), mask=element < numel)
