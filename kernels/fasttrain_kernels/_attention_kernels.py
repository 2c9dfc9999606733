"""The Triton kernels of `attention` and their launch rules; the formulas are in that file's
docstring."""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import NamedTuple

from fasttrain_kernels._tiles import power_of_2
from fasttrain_kernels.dispatch import tl, triton

__all__ = [
    "Plan",
    "block_of",
    "delta_kernel",
    "dkdv_kernel",
    "dq_kernel",
    "forward_kernel",
    "plan_backward",
    "plan_forward",
]

# A program has one block of tokens of one sample and head. LAST: channels_last. Sizes are constants
# of the kernel. UP: the interpreter multiplies the raw bits of bfloat16, so there blocks are taken
# to float32; compiled, products of 16-bit blocks run on tensor cores and add up in float32.
# Products of float32 blocks are exact to float32 ("ieee"): that dtype is for correctness.


@triton.jit
def _place(S: tl.constexpr, BLOCK: tl.constexpr):
    """This program's sample-and-head pair, and its first token: neighbours share a pair, whose keys
    and values then stay in the cache. One axis, for a second would end at 65,535 pairs."""
    blocks: tl.constexpr = (S + BLOCK - 1) // BLOCK
    return tl.program_id(0) // blocks, tl.program_id(0) % blocks * BLOCK


@triton.jit
def _locate(tensor, pair, PARTS: tl.constexpr, C: tl.constexpr, HEADS: tl.constexpr,
            S: tl.constexpr, LAST: tl.constexpr):  # fmt: skip
    """The first value of this program's sample and head in a tensor of PARTS C channels."""
    sample = (pair // HEADS).to(tl.int64)
    head = pair % HEADS
    if PARTS * C * S >= 2**31:
        head = head.to(tl.int64)
    return tensor + sample * (PARTS * C * S) + head * (C // HEADS) * (1 if LAST else S)


@triton.jit
def _offsets(t0, CHANNELS: tl.constexpr, S: tl.constexpr, D: tl.constexpr, LAST: tl.constexpr,
             BLOCK: tl.constexpr, BLOCK_D: tl.constexpr):  # fmt: skip
    """Offsets [BLOCK, BLOCK_D] of tokens from t0 on in CHANNELS channels, and which are real."""
    tokens = t0 + tl.arange(0, BLOCK)
    dims = tl.arange(0, BLOCK_D)
    live = (tokens < S)[:, None] & (dims < D)[None, :]
    if CHANNELS * S + CHANNELS * BLOCK + BLOCK_D * S >= 2**31:  # the block's end is farther yet
        tokens = tokens.to(tl.int64)
        dims = dims.to(tl.int64)
    if LAST:
        return tokens[:, None] * CHANNELS + dims[None, :], live
    return tokens[:, None] + dims[None, :] * S, live


@triton.jit
def _load(tensor, offsets, live, UP: tl.constexpr):
    block = tl.load(tensor + offsets, mask=live, other=0.0)
    return block.to(tl.float32) if UP else block


@triton.jit
def forward_kernel(
    qkv, out, lse, factor,
    C: tl.constexpr, HEADS: tl.constexpr, S: tl.constexpr, LAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = C // HEADS
    part: tl.constexpr = C if LAST else C * S
    pair, m0 = _place(S, BLOCK_M)
    qkv, out = _locate(qkv, pair, 3, C, HEADS, S, LAST), _locate(out, pair, 1, C, HEADS, S, LAST)
    at_m, live_m = _offsets(m0, 3 * C, S, D, LAST, BLOCK_M, BLOCK_D)
    q = _load(qkv, at_m, live_m, UP)
    peak = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    y = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n0 in range(0, S, BLOCK_N):
        at, live = _offsets(n0, 3 * C, S, D, LAST, BLOCK_N, BLOCK_D)
        k = _load(qkv + part, at, live, UP)
        scores = tl.dot(q, tl.trans(k), input_precision="ieee") * factor
        scores = tl.where((n0 + tl.arange(0, BLOCK_N) < S)[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, axis=1))
        p = tl.exp2(scores - higher[:, None])
        fade = tl.exp2(peak - higher)
        total = total * fade + tl.sum(p, axis=1)
        v = _load(qkv + 2 * part, at, live, UP)
        y = y * fade[:, None] + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        peak = higher
    at_m, live_m = _offsets(m0, C, S, D, LAST, BLOCK_M, BLOCK_D)
    tl.store(out + at_m, (y / total[:, None]).to(out.dtype.element_ty), mask=live_m)
    rows = m0 + tl.arange(0, BLOCK_M)
    at_row = pair.to(tl.int64) * S + rows
    tl.store(lse + at_row, peak + tl.log2(total), mask=rows < S)


@triton.jit
def delta_kernel(
    dy, y, delta,
    C: tl.constexpr, HEADS: tl.constexpr, S: tl.constexpr, LAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = C // HEADS
    pair, m0 = _place(S, BLOCK_M)
    dy, y = _locate(dy, pair, 1, C, HEADS, S, LAST), _locate(y, pair, 1, C, HEADS, S, LAST)
    at, live = _offsets(m0, C, S, D, LAST, BLOCK_M, BLOCK_D)
    product = _load(dy, at, live, True) * _load(y, at, live, True)
    rows = m0 + tl.arange(0, BLOCK_M)
    at_row = pair.to(tl.int64) * S + rows
    tl.store(delta + at_row, tl.sum(product, axis=1), mask=rows < S)


@triton.jit
def _p_and_ds(q, k, v, g, lse, delta, factor, pair, m0, n0, S: tl.constexpr,
              BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):  # fmt: skip
    """P and dS of a block of queries (from m0) by keys (from n0), zero where either is not real."""
    rows, columns = m0 + tl.arange(0, BLOCK_M), n0 + tl.arange(0, BLOCK_N)
    at_row = pair.to(tl.int64) * S + rows
    level = tl.load(lse + at_row, mask=rows < S, other=0.0)
    mean = tl.load(delta + at_row, mask=rows < S, other=0.0)
    scores = tl.dot(q, tl.trans(k), input_precision="ieee") * factor
    live = (rows < S)[:, None] & (columns < S)[None, :]
    p = tl.where(live, tl.exp2(scores - level[:, None]), 0.0)
    dp = tl.dot(g, tl.trans(v), input_precision="ieee")
    return p, p * (dp - mean[:, None])


@triton.jit
def dkdv_kernel(
    dy, qkv, lse, delta, dqkv, factor, root,
    C: tl.constexpr, HEADS: tl.constexpr, S: tl.constexpr, LAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = C // HEADS
    part: tl.constexpr = C if LAST else C * S
    pair, n0 = _place(S, BLOCK_N)
    dy, qkv = _locate(dy, pair, 1, C, HEADS, S, LAST), _locate(qkv, pair, 3, C, HEADS, S, LAST)
    dqkv = _locate(dqkv, pair, 3, C, HEADS, S, LAST)
    at_n, live_n = _offsets(n0, 3 * C, S, D, LAST, BLOCK_N, BLOCK_D)
    k, v = _load(qkv + part, at_n, live_n, UP), _load(qkv + 2 * part, at_n, live_n, UP)
    dk = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    dv = tl.zeros([BLOCK_N, BLOCK_D], tl.float32)
    for m0 in range(0, S, BLOCK_M):
        at, live = _offsets(m0, 3 * C, S, D, LAST, BLOCK_M, BLOCK_D)
        q = _load(qkv, at, live, UP)
        at, live = _offsets(m0, C, S, D, LAST, BLOCK_M, BLOCK_D)
        g = _load(dy, at, live, UP)
        p, ds = _p_and_ds(q, k, v, g, lse, delta, factor, pair, m0, n0, S, BLOCK_M, BLOCK_N)
        dv += tl.dot(tl.trans(p.to(g.dtype)), g, input_precision="ieee")
        dk += tl.dot(tl.trans(ds.to(q.dtype)), q, input_precision="ieee")
    tl.store(dqkv + part + at_n, (dk * root).to(dqkv.dtype.element_ty), mask=live_n)
    tl.store(dqkv + 2 * part + at_n, dv.to(dqkv.dtype.element_ty), mask=live_n)


@triton.jit
def dq_kernel(
    dy, qkv, lse, delta, dqkv, factor, root,
    C: tl.constexpr, HEADS: tl.constexpr, S: tl.constexpr, LAST: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr, UP: tl.constexpr,
):  # fmt: skip
    D: tl.constexpr = C // HEADS
    part: tl.constexpr = C if LAST else C * S
    pair, m0 = _place(S, BLOCK_M)
    dy, qkv = _locate(dy, pair, 1, C, HEADS, S, LAST), _locate(qkv, pair, 3, C, HEADS, S, LAST)
    dqkv = _locate(dqkv, pair, 3, C, HEADS, S, LAST)
    at_m, live_m = _offsets(m0, 3 * C, S, D, LAST, BLOCK_M, BLOCK_D)
    q = _load(qkv, at_m, live_m, UP)
    at_g, live_g = _offsets(m0, C, S, D, LAST, BLOCK_M, BLOCK_D)
    g = _load(dy, at_g, live_g, UP)
    dq = tl.zeros([BLOCK_M, BLOCK_D], tl.float32)
    for n0 in range(0, S, BLOCK_N):
        at, live = _offsets(n0, 3 * C, S, D, LAST, BLOCK_N, BLOCK_D)
        k, v = _load(qkv + part, at, live, UP), _load(qkv + 2 * part, at, live, UP)
        _, ds = _p_and_ds(q, k, v, g, lse, delta, factor, pair, m0, n0, S, BLOCK_M, BLOCK_N)
        dq += tl.dot(ds.to(k.dtype), k, input_precision="ieee")
    tl.store(dqkv + at_m, (dq * root).to(dqkv.dtype.element_ty), mask=live_m)


# ------------------------------------------------------------------------------------- launch rules


class Plan(NamedTuple):
    """Launch of a kernel: queries and keys a block, warps of 32 threads, pipeline stages."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def block_of(n: int) -> int:
    """Tensor cores multiply by 16 and more."""
    return max(16, power_of_2(n))


def plan_forward(tokens: int, head_size: int, itemsize: int, arch: int = 90) -> Plan:
    """Read off the compiled kernels: nothing spills. arch: compute capability, 90 for 9.0.

    Up to 256 tokens are one block of keys, so that nothing is rescaled; before sm_90 a program then
    keeps 32 queries, since 64 spill. More tokens go by blocks of 64 keys and 128 queries, two of
    Hopper's warp groups. float32, which uses no tensor cores, by 32.
    """
    if itemsize == 4:
        return Plan(32, 32, 4, 2)
    whole = block_of(tokens)
    if whole > 256 or head_size > 64:
        return Plan(min(128, whole), min(64, whole), 8, 3 if head_size <= 64 else 2)
    if whole == 256:
        return Plan(64 if arch >= 90 else 32, whole, 8, 1)
    return Plan(min(64, whole), whole, 4, 1)


def plan_backward(tokens: int, head_size: int, itemsize: int) -> Plan:
    """Of both kernels: the block that a program keeps, and the one it walks, are 64 tokens."""
    if itemsize == 4:
        return Plan(32, 32, 8, 1)
    block = min(64, block_of(tokens))
    return Plan(block, block, 8 if head_size > 64 else 4, 2 if head_size <= 64 else 1)
