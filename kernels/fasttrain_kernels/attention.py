r"""Self-attention over pixels, on the output of the qkv convolution as it lies in memory.

For each sample and head, with q, k, v [S, D] and S = H W tokens::

    P = softmax(q k^T / sqrt(D)),     y = P v

Flash attention (Dao, arXiv 2307.08691): P never exists in memory. The forward runs over blocks of
keys with a running maximum m and sum l of each row, in base 2, and keeps L = m + log2(l). Backward,
with g = dy and delta = sum(g y) over D::

    P = exp2(q k^T log2(e) / sqrt(D) - L)
    dv = P^T g,     dS = P (g v^T - delta),     dq = dS k / sqrt(D),     dk = dS^T q / sqrt(D)

dk and dv are summed over blocks of queries in one kernel, dq over blocks of keys in another, so
there are no atomics and results repeat bit for bit.

No activation is permuted or copied: channels_last is read as [N, S, 3, heads, D], contiguous memory
as [N, 3, heads, D, S]. The published checkpoints order the convolution's rows otherwise;
`blocked_rows` reorders a copy of its weight.

    qkv = F.conv2d(x, blocked_rows(weight, heads), blocked_rows(bias, heads))
    y = attention(qkv, heads=heads)
"""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

import math
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fasttrain_kernels.dispatch import (
    INTERPRETED,
    Impl,
    in_channels_last,
    resolve,
    scope,
    tl,
    triton,
)

__all__ = ["MEASURED", "MOST_HEAD_SIZE", "attention", "attention_reference", "blocked_rows"]

Choice = Literal["triton", "sdpa", "sdpa_flash", "sdpa_cudnn"]

# (GPU, tokens, head size, dtype) -> the fastest, forward plus backward, of benchmarks/results/*.
# Nothing has been measured yet; without an entry torch's SDPA chooses for itself.
MEASURED: dict[tuple[str, int, int, str], Choice] = {}

MOST_HEAD_SIZE = 128
"""Channels of a head that the kernels take; larger ones would spill."""
LEAST_ARCH = 80
"""Compute capability that the kernels take. Before it Triton has no tensor cores for their
products: compiled for sm_75 they spill kilobytes a thread and want up to 144 KB of shared memory,
where there are 64."""


def attention_reference(qkv: Tensor, *, heads: int) -> Tensor:
    """torch's scaled_dot_product_attention on views of qkv; softmax in float32, any dtype and
    device, first-order gradients wherever its backend has no more."""
    q, k, v = _views(qkv, heads)
    if qkv.is_cuda and not in_channels_last(
        qkv
    ):  # else only the slow S x S backend would take them
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return _back(F.scaled_dot_product_attention(q, k, v), qkv)


def blocked_rows(rows: Tensor, heads: int) -> Tensor:
    """A qkv convolution's weight [3 C, ...] or bias [3 C] in the published order, row
    (head * D + d) * 3 + j with j = 0, 1, 2 for q, k, v, as a copy in the order (j, head, d)."""
    size = len(rows) // (3 * heads)
    return rows.unflatten(0, (heads, size, 3)).movedim(2, 0).flatten(0, 2)


def _views(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """q, k, v [N, heads, S, D] without a copy."""
    samples, channels, height, width = qkv.shape
    if in_channels_last(qkv):
        shape = (samples, height * width, 3, heads, channels // (3 * heads))
        q, k, v = qkv.permute(0, 2, 3, 1).view(shape).permute(2, 0, 3, 1, 4)
    else:
        shape = (samples, 3, heads, channels // (3 * heads), height * width)
        q, k, v = qkv.contiguous().view(shape).permute(1, 0, 2, 4, 3)
    return q, k, v


def _back(out: Tensor, qkv: Tensor) -> Tensor:
    """[N, heads, S, D] -> [N, C, H, W] in the memory format of qkv."""
    samples, channels, height, width = qkv.shape
    if in_channels_last(qkv):
        pixels = out.transpose(1, 2).reshape(samples, height, width, channels // 3)
        return pixels.permute(0, 3, 1, 2)
    return out.transpose(2, 3).reshape(samples, channels // 3, height, width)


# ---------------------------------------------------------------------------------------- kernels
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
    head = (pair % HEADS).to(tl.int64)
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
def _forward_kernel(
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
def _delta_kernel(
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
def _dkdv_kernel(
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
def _dq_kernel(
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


# -------------------------------------------------------------------------------------- launchers


class Plan(NamedTuple):
    """Launch of a kernel: queries and keys a block, warps of 32 threads, pipeline stages."""

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int


def _power_of_2(n: int) -> int:
    return max(16, 1 << (n - 1).bit_length())


def plan_forward(tokens: int, head_size: int, itemsize: int, arch: int = 90) -> Plan:
    """Read off the compiled kernels: nothing spills. arch: compute capability, 90 for 9.0.

    Up to 256 tokens are one block of keys, so that nothing is rescaled; before sm_90 a program then
    keeps 32 queries, since 64 spill. More tokens go by blocks of 64 keys and 128 queries, two of
    Hopper's warp groups. float32, which uses no tensor cores, by 32.
    """
    if itemsize == 4:
        return Plan(32, 32, 4, 2)
    whole = _power_of_2(tokens)
    if whole > 256 or head_size > 64:
        return Plan(min(128, whole), min(64, whole), 8, 3 if head_size <= 64 else 2)
    if whole == 256:
        return Plan(64 if arch >= 90 else 32, whole, 8, 1)
    return Plan(min(64, whole), whole, 4, 1)


def plan_backward(tokens: int, head_size: int, itemsize: int) -> Plan:
    """Of both kernels: the block that a program keeps, and the one it walks, are 64 tokens."""
    if itemsize == 4:
        return Plan(32, 32, 8, 1)
    block = min(64, _power_of_2(tokens))
    return Plan(block, block, 8 if head_size > 64 else 4, 2 if head_size <= 64 else 1)


def _launch(kernel: Any, qkv: Tensor, heads: int, own: int, plan: Plan, *tensors: Any) -> None:
    """`own`: tokens a program keeps."""
    samples, channels, height, width = qkv.shape
    tokens, size = height * width, channels // (3 * heads)
    with torch.cuda.device_of(qkv):
        kernel[(-(-tokens // own) * samples * heads,)](
            *tensors, channels // 3, heads, tokens, in_channels_last(qkv),
            plan.block_m, plan.block_n, _power_of_2(size), INTERPRETED,
            num_warps=plan.num_warps, num_stages=plan.num_stages, enable_fp_fusion=True,
        )  # fmt: skip


def _arch(qkv: Tensor) -> int:
    """Compute capability of a tensor's GPU, 90 for 9.0; the interpreter's is as good as any."""
    if not qkv.is_cuda:
        return 90
    major, minor = torch.cuda.get_device_capability(qkv.device)
    return 10 * major + minor


def _refusal(qkv: Tensor, size: int) -> str | None:
    """Why the kernels cannot take heads of `size` channels there, or None."""
    if size > MOST_HEAD_SIZE:
        return f"the kernels take heads of at most {MOST_HEAD_SIZE} channels, got {size}"
    if _arch(qkv) < LEAST_ARCH:
        return f"the kernels take GPUs from sm_{LEAST_ARCH} on, this one is sm_{_arch(qkv)}"
    return None


def _factors(size: int) -> tuple[float, float]:
    """log2(e) / sqrt(D), for scores in base 2, and 1 / sqrt(D)."""
    return math.log2(math.e) / math.sqrt(size), 1 / math.sqrt(size)


# ----------------------------------------------------------------------------------- registration


@torch.library.custom_op("fasttrain::attention", mutates_args=())
def _forward(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """y, and the float32 L [N, heads, S] that the backward reads."""
    y, lse = _allocate(qkv, heads)
    if qkv.numel():
        tokens, size = lse.shape[2], y.shape[1] // heads
        plan = plan_forward(tokens, size, qkv.element_size(), _arch(qkv))
        _launch(_forward_kernel, qkv, heads, plan.block_m, plan, qkv, y, lse, _factors(size)[0])
    return y, lse


@_forward.register_fake
def _allocate(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    samples, channels, height, width = qkv.shape
    last = torch.channels_last if in_channels_last(qkv) else torch.contiguous_format
    shape = (samples, channels // 3, height, width)
    y = torch.empty(shape, device=qkv.device, dtype=qkv.dtype, memory_format=last)
    lse = torch.empty(samples, heads, height * width, device=qkv.device, dtype=torch.float32)
    return y, lse


@torch.library.custom_op("fasttrain::attention_backward", mutates_args=())
def _backward(dy: Tensor, qkv: Tensor, y: Tensor, lse: Tensor) -> Tensor:
    dqkv = torch.empty_like(qkv)
    if qkv.numel():
        heads, tokens = lse.shape[1:]
        size = y.shape[1] // heads
        plan = plan_backward(tokens, size, qkv.element_size())
        delta = torch.empty_like(lse)
        samples, channels = y.shape[:2]
        with torch.cuda.device_of(qkv):
            _delta_kernel[(-(-tokens // 64) * samples * heads,)](
                dy, y, delta, channels, heads, tokens, in_channels_last(qkv), 64, _power_of_2(size),
                num_warps=4, enable_fp_fusion=True,
            )  # fmt: skip
        tensors = (dy, qkv, lse, delta, dqkv, *_factors(size))
        _launch(_dkdv_kernel, qkv, heads, plan.block_n, plan, *tensors)
        _launch(_dq_kernel, qkv, heads, plan.block_m, plan, *tensors)
    return dqkv


@_backward.register_fake
def _(dy: Tensor, qkv: Tensor, y: Tensor, lse: Tensor) -> Tensor:
    return torch.empty_like(qkv)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(inputs[0], *output)
    ctx.heads = inputs[1]
    ctx.set_materialize_grads(False)


def _gradients(ctx: Any, dy: Tensor | None, _: Tensor | None) -> tuple[Tensor | None, None]:
    """The autograd formula. Grad mode is on in here exactly under create_graph: the kernel's result
    would be a constant to the next derivative, so a formula of plain torch takes over."""
    if dy is None:
        return None, None
    qkv, y, lse = ctx.saved_tensors
    if torch.is_grad_enabled():
        view = qkv.view_as(qkv)
        out = _plain(view, ctx.heads)
        return torch.autograd.grad(out, view, dy, create_graph=True)[0], None
    last = torch.channels_last if in_channels_last(qkv) else torch.contiguous_format
    return _backward(dy.contiguous(memory_format=last), qkv, y, lse), None


def _plain(qkv: Tensor, heads: int) -> Tensor:
    """The definition, with the S x S matrix: differentiable to any order."""
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = (part.to(dtype) for part in _views(qkv, heads))
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
    return _back((weights @ v).to(qkv.dtype), qkv)


_forward.register_autograd(_gradients, setup_context=_setup_context)


# ------------------------------------------------------------------------------------- public op


def attention(qkv: Tensor, *, heads: int, impl: Impl = "auto") -> Tensor:
    """`softmax(q k^T / sqrt(D)) v` of each head, over the pixels of each sample.

    Args:
        qkv: [N, 3 C, H, W], contiguous or channels_last (anything else is copied), channels in the
            order (j, head, d) with j = 0, 1, 2 for q, k, v: see `blocked_rows`. float32, bfloat16
            or float16; the reference also takes float64.
        heads: divides C; D = C / heads, any size for the reference, at most 128 for the kernels,
            which want a GPU of sm_80 or later.
        impl: ``"auto"`` on a GPU takes what `MEASURED` says is fastest for the shape, else torch's
            SDPA; see `fasttrain_kernels.dispatch.resolve` for the others.

    Returns:
        [N, C, H, W] in the dtype and memory format of qkv. Softmax and sums are float32; P is
        rounded to the dtype of qkv before its product with v.

    Gradients: first order by the kernels; higher orders by plain torch, with the S x S matrix. The
    reference has those of SDPA.

    Raises:
        ValueError: shapes that do not fit; a head size or device that the kernels cannot take.
    """
    if qkv.dim() != 4 or not qkv.is_floating_point():
        raise ValueError(
            f"qkv must be a floating-point tensor [N, 3 C, H, W], got {qkv.dtype} {list(qkv.shape)}"
        )
    if heads < 1 or qkv.shape[1] % (3 * heads):
        raise ValueError(
            f"qkv has {qkv.shape[1]} channels: they must divide by 3 times {heads} heads"
        )
    size = qkv.shape[1] // (3 * heads)
    choice: str = resolve(impl, qkv)
    refusal = _refusal(qkv, size) if choice == "triton" else None
    if impl == "triton" and refusal:
        raise ValueError(f"{refusal}: use impl='auto'")
    if impl == "auto" and choice == "triton":
        if scope() == "auto":
            choice = fastest(torch.cuda.get_device_name(qkv.device), qkv, size)
        if choice == "triton" and refusal:
            choice = "sdpa"
    if choice == "triton":
        if not in_channels_last(qkv):
            qkv = qkv.contiguous()
        return _forward(qkv, heads)[0]
    if choice in _BACKENDS:
        others = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # where it cannot run after all
        with sdpa_kernel([_BACKENDS[choice], *others], set_priority=True):
            return attention_reference(qkv, heads=heads)
    return attention_reference(qkv, heads=heads)


_BACKENDS = {
    "sdpa_flash": SDPBackend.FLASH_ATTENTION,
    "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION,
}


def fastest(gpu: str, qkv: Tensor, head_size: int) -> Choice:
    """The measured choice for a shape on a GPU by its name ("NVIDIA H100 80GB HBM3"); else SDPA."""
    tokens = qkv.shape[2] * qkv.shape[3]
    dtype = str(qkv.dtype).removeprefix("torch.")
    for (family, *shape), choice in MEASURED.items():
        if family in gpu.split() and tuple(shape) == (tokens, head_size, dtype):
            return choice
    return "sdpa"
