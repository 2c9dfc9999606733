"""Attention on the qkv convolution's output: ADM's (heads of 64 at 32, 16 and 8 pixels a side), one
of 4,096 tokens, and NCSN++'s single head of 256.

eager: the S x S matrix, softmax in float32. library: torch's SDPA, flash and cuDNN apart. ours is
`impl="auto"`, which may itself be SDPA; the Triton kernels have a column of their own. Operations:
4 N heads S^2 D forward (two products) and 10 backward (five; the scores are computed again).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.gpu.case import (
    COMPILE,
    EAGER,
    OURS,
    Case,
    Inputs,
    Work,
    at_least_float32,
    nbytes,
    random,
)
from fasttrain.analysis.profiling.operators import attention_product
from fasttrain_kernels import attention
from fasttrain_kernels.dispatch import in_channels_last

__all__ = ["CUDNN", "FLASH", "TRITON", "attention_cases"]

FLASH, CUDNN, TRITON = "SDPA flash", "SDPA cuDNN", "ours, triton"


class Attention(NamedTuple):
    """`checked`: samples that are compared with float64, whose S x S matrices are large."""

    batch: int
    heads: int
    head_size: int
    resolution: int
    layout: str
    checked: int

    @property
    def name(self) -> str:
        size = "" if self.batch == 128 else f" N={self.batch}"
        return f"{self.heads}x{self.head_size} S={self.resolution**2}{size}"


_CASES = (
    Attention(128, 6, 64, 32, "NHWC", 16),
    Attention(128, 9, 64, 16, "NHWC", 128),
    Attention(128, 12, 64, 8, "NHWC", 128),
    Attention(16, 3, 64, 64, "NHWC", 2),
    Attention(128, 1, 256, 16, "NHWC", 128),
    Attention(128, 6, 64, 32, "NCHW", 16),
)
_QUICK = (Attention(2, 2, 32, 4, "NHWC", 1), Attention(2, 2, 32, 4, "NCHW", 2))


def attention_cases(*, quick: bool) -> Iterator[Case]:
    yield from (_case(shape) for shape in (_QUICK if quick else _CASES))


def _case(shape: Attention, dtype: torch.dtype = torch.bfloat16) -> Case:
    batch, heads, head_size, resolution, layout, checked = shape
    channels = heads * head_size

    def inputs(device: torch.device, seed: int) -> Inputs:
        draw = random(device, seed, dtype, layout)
        return {"qkv": draw(batch, 3 * channels, resolution, resolution)}

    def work(inputs: Inputs, results: Any) -> Work:
        """qkv in, y out; then dy and qkv in, dqkv out."""
        qkv, y = nbytes(inputs["qkv"]), nbytes(results["y"])
        product = attention_product(inputs["qkv"])
        return Work(qkv + y, y + 2 * qkv, 2 * product, 5 * product)

    columns: dict[str, Callable[..., Any]] = {EAGER: _with(_scores, heads)}
    columns |= {COMPILE: columns[EAGER]}
    columns |= {FLASH: _with(_sdpa(SDPBackend.FLASH_ATTENTION), heads)}
    columns |= {CUDNN: _with(_sdpa(SDPBackend.CUDNN_ATTENTION), heads)}
    columns |= {TRITON: lambda qkv: attention(qkv, heads=heads, impl="triton")}
    columns |= {OURS: lambda qkv: attention(qkv, heads=heads)}
    return Case(
        "attention", shape.name, layout, dtype, inputs, columns, work,
        gradients=("qkv",), checked=checked,
        facts={"heads": heads, "head_size": head_size, "tokens": resolution**2},
    )  # fmt: skip


_Core = Callable[[Tensor, Tensor, Tensor], Tensor]


def _with(core: _Core, heads: int) -> Callable[..., Tensor]:
    """Attention on qkv [N, 3 C, H, W], channels (3, heads, D), from one on [N, heads, S, D]. NHWC
    needs no copy; NCHW needs transposed ones, because SDPA wants the D values side by side."""

    def run(qkv: Tensor) -> Tensor:
        samples, channels, height, width = qkv.shape
        pixels = height * width
        if in_channels_last(qkv):
            parts = qkv.permute(0, 2, 3, 1).view(samples, pixels, 3, heads, -1)
            q, k, v = parts.permute(2, 0, 3, 1, 4)
        else:
            parts = qkv.view(samples, 3, heads, -1, pixels)
            q, k, v = parts.permute(1, 0, 2, 4, 3).contiguous()
        y = core(q, k, v)
        if in_channels_last(qkv):
            y = y.transpose(1, 2).reshape(samples, height, width, channels // 3)
            return y.permute(0, 3, 1, 2)
        return y.transpose(2, 3).reshape(samples, channels // 3, height, width)

    return run


def _scores(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return at_least_float32(scores).softmax(-1).to(q.dtype) @ v


def _sdpa(backend: SDPBackend) -> _Core:
    def run(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(backend):
            return F.scaled_dot_product_attention(q, k, v)

    return run
