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

from __future__ import annotations

import math
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from fasttrain_kernels import _attention_kernels as kernels
from fasttrain_kernels._attention_kernels import Plan, block_of, plan_backward, plan_forward
from fasttrain_kernels._registration import op
from fasttrain_kernels._tiles import layout_of
from fasttrain_kernels.dispatch import (
    INTERPRETED,
    Impl,
    in_channels_last,
    launch,
    on_cpu,
    resolve,
    scope,
)

__all__ = ["MEASURED", "MOST_HEAD_SIZE", "attention", "attention_reference", "blocked_rows"]

Choice = Literal["triton", "sdpa", "sdpa_flash", "sdpa_cudnn"]

# (GPU, tokens, head size, dtype) -> the fastest, forward plus backward, of benchmarks/results/*.
# Nothing has been measured yet; without an entry torch's SDPA chooses for itself.
MEASURED: dict[tuple[str, int, int, str], Choice] = {}

MOST_HEAD_SIZE = 128
"""Channels of a head that the kernels take; larger ones would spill."""
SHORT = 256
"""Tokens up to which a CPU keeps the S x S weights in memory in bfloat16."""
LEAST_ARCH = 80
"""Compute capability that the kernels take. Before it Triton has no tensor cores for their
products: compiled for sm_75 they spill kilobytes a thread and want up to 144 KB of shared memory,
where there are 64."""


def attention_reference(qkv: Tensor, *, heads: int) -> Tensor:
    """torch's scaled_dot_product_attention on views of qkv; softmax in float32, any dtype and
    device, first-order gradients wherever its backend has no more. In bfloat16 on a CPU, short
    sequences are plain products: torch's backward pass takes 3 to 10 times as long there."""
    q, k, v = _views(qkv, heads)
    if qkv.dtype == torch.bfloat16 and on_cpu(qkv) and q.shape[2] <= SHORT:
        scores = q.float() @ k.float().mT * q.shape[3] ** -0.5
        return _back(scores.softmax(-1).to(v.dtype) @ v, qkv)
    if qkv.is_cuda and not in_channels_last(qkv):  # else only the S x S backend takes them
        q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    return _back(F.scaled_dot_product_attention(q, k, v), qkv)


def blocked_rows(rows: Tensor, heads: int, dtype: torch.dtype | None = None) -> Tensor:
    """A qkv convolution's weight [3 C, ...] or bias [3 C] in the published order, row
    (head * D + d) * 3 + j with j = 0, 1, 2 for q, k, v, as a copy in the order (j, head, d), in
    `dtype` (its own by default)."""
    size = len(rows) // (3 * heads)
    blocks = rows.unflatten(0, (heads, size, 3)).movedim(2, 0)
    if dtype not in (None, rows.dtype):  # cast and order in one pass
        blocks = blocks.to(dtype, memory_format=torch.contiguous_format)
    return blocks.flatten(0, 2)


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
    """[N, heads, S, D] -> [N, C, H, W] in the memory format of qkv. Of one head contiguous ones may
    become channels_last, without a copy: a CPU's convolutions are the faster for it."""
    samples, channels, height, width = qkv.shape
    if in_channels_last(qkv):
        pixels = out.transpose(1, 2).reshape(samples, height, width, channels // 3)
        return pixels.permute(0, 3, 1, 2)
    return out.transpose(2, 3).reshape(samples, channels // 3, height, width)


# -------------------------------------------------------------------------------------- launchers


def _run(kernel: Any, heads: int, own: int, plan: Plan, **tensors: Any) -> None:
    """`own`: tokens a program keeps."""
    qkv = tensors["qkv"]
    samples, channels, height, width = qkv.shape
    tokens, size = height * width, channels // (3 * heads)
    launch(
        kernel, (-(-tokens // own) * samples * heads,),
        **tensors, C=channels // 3, HEADS=heads, S=tokens, LAST=in_channels_last(qkv),
        BLOCK_M=plan.block_m, BLOCK_N=plan.block_n, BLOCK_D=block_of(size), UP=INTERPRETED,
        num_warps=plan.num_warps, num_stages=plan.num_stages,
    )  # fmt: skip


def _arch(qkv: Tensor) -> int:
    """Compute capability of a tensor's GPU, 90 for 9.0; the interpreter's is as good as any."""
    return _capability(qkv.device) if qkv.is_cuda else 90


def _capability(device: torch.device) -> int:
    major, minor = torch.cuda.get_device_capability(device)
    return 10 * major + minor


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)


for _function in (_capability, _name):  # torch's return no tensors: Dynamo breaks the graph there
    # As torch.compiler.assume_constant_result does, which imports the compiler.
    vars(_function)["_dynamo_marked_constant"] = True


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


def _allocate(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    samples, channels, height, width = qkv.shape
    shape, layout = (samples, channels // 3, height, width), layout_of(qkv)
    y = torch.empty(shape, device=qkv.device, dtype=qkv.dtype, memory_format=layout)
    lse = torch.empty(samples, heads, height * width, device=qkv.device, dtype=torch.float32)
    return y, lse


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
    return _backward(dy.contiguous(memory_format=layout_of(qkv)), qkv, y, lse), None


def _plain(qkv: Tensor, heads: int) -> Tensor:
    """The definition, with the S x S matrix: differentiable to any order."""
    dtype = torch.promote_types(qkv.dtype, torch.float32)
    q, k, v = (part.to(dtype) for part in _views(qkv, heads))
    weights = (q @ k.transpose(2, 3) / math.sqrt(q.shape[-1])).softmax(-1)
    return _back((weights @ v).to(qkv.dtype), qkv)


@op("attention", fake=_allocate, gradients=_gradients, context=_setup_context)
def _forward(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """y, and the float32 L [N, heads, S] that the backward reads."""
    y, lse = _allocate(qkv, heads)
    if qkv.numel():
        tokens, size = lse.shape[2], y.shape[1] // heads
        plan = plan_forward(tokens, size, qkv.element_size(), _arch(qkv))
        tensors: dict[str, Any] = {"qkv": qkv, "out": y, "lse": lse, "factor": _factors(size)[0]}
        _run(kernels.forward_kernel, heads, plan.block_m, plan, **tensors)
    return y, lse


@op("attention_backward", fake=lambda dy, qkv, y, lse: torch.empty_like(qkv))
def _backward(dy: Tensor, qkv: Tensor, y: Tensor, lse: Tensor) -> Tensor:
    dqkv = torch.empty_like(qkv)
    if qkv.numel():
        heads, tokens = lse.shape[1:]
        samples, channels = y.shape[:2]
        size = channels // heads
        plan = plan_backward(tokens, size, qkv.element_size())
        delta = torch.empty_like(lse)
        launch(
            kernels.delta_kernel, (-(-tokens // 64) * samples * heads,),
            dy=dy, y=y, delta=delta, C=channels, HEADS=heads, S=tokens,
            LAST=in_channels_last(qkv), BLOCK_M=64, BLOCK_D=block_of(size), num_warps=4,
        )  # fmt: skip
        factor, root = _factors(size)
        tensors: dict[str, Any] = {"dy": dy, "qkv": qkv, "lse": lse, "delta": delta, "dqkv": dqkv}
        tensors |= {"factor": factor, "root": root}
        _run(kernels.dkdv_kernel, heads, plan.block_n, plan, **tensors)
        _run(kernels.dq_kernel, heads, plan.block_m, plan, **tensors)
    return dqkv


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
        [N, C, H, W] in the dtype and memory format of qkv (of one head the reference may return
        channels_last for contiguous). Softmax and sums are float32; P is rounded to the dtype of
        qkv before its product with v.

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
            choice = fastest(_name(qkv.device), qkv, size)
        if choice == "triton" and refusal:
            choice = "sdpa"
    if choice == "triton":
        if not in_channels_last(qkv):
            qkv = qkv.contiguous()
        y: Tensor = _forward(qkv, heads)[0]
        return y
    if choice in _BACKENDS:
        others = [SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]  # where it cannot run after all
        with sdpa_kernel([_BACKENDS[choice], *others], set_priority=True):
            return attention_reference(qkv, heads=heads)
    return attention_reference(qkv, heads=heads)


_BACKENDS = {"sdpa_flash": SDPBackend.FLASH_ATTENTION, "sdpa_cudnn": SDPBackend.CUDNN_ATTENTION}


def fastest(gpu: str, qkv: Tensor, head_size: int) -> Choice:
    """The measured choice for a shape on a GPU by its name ("NVIDIA H100 80GB HBM3"); else SDPA."""
    tokens = qkv.shape[2] * qkv.shape[3]
    dtype = str(qkv.dtype).removeprefix("torch.")
    for (family, *shape), choice in MEASURED.items():
        if family in gpu.split() and tuple(shape) == (tokens, head_size, dtype):
            return choice
    return "sdpa"
