"""Variants of attention: ADM's heads of 64 at 32, 16 and 8 pixels a side, and what else the op
promises: heads of 32 and 128, 4,096 tokens, the other memory format and dtypes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from benchmarks.compiled import ARCHITECTURES, Variant, signature_of

__all__ = ["variants"]

op: Any = import_module("fasttrain_kernels.attention")  # the package's `attention` is the function


@dataclass(frozen=True)
class Shape:
    heads: int
    size: int
    tokens: int
    dtype: str = "bf16"
    last: bool = True

    @property
    def name(self) -> str:
        layout = "nhwc" if self.last else "nchw"
        return f"{self.heads}x{self.size}-s{self.tokens}-{self.dtype}-{layout}"


ADM = ((6, 64, 1024), (9, 64, 256), (12, 64, 64))
SHAPES = (
    *(Shape(*shape) for shape in ADM),
    *(Shape(*shape, last=False) for shape in ADM),
    Shape(3, 64, 4096),
    *(Shape(4, size, tokens) for size in (32, 128) for tokens in (256, 1024)),
    Shape(6, 64, 1024, "fp16"),
    Shape(6, 64, 1024, "fp32"),
    Shape(9, 64, 256, "fp32"),
)


def variants() -> Iterator[Variant]:
    """Each shape in the forward and in the three backward kernels."""
    for shape in SHAPES:
        itemsize = 4 if shape.dtype == "fp32" else 2
        sizes = (shape.tokens, shape.size, itemsize)
        for archs in ((80,), (90, 100)):
            plan = op.plan_forward(*sizes, archs[0])
            yield _variant(shape, op.kernels.forward_kernel, "attention", plan, archs)
        backward = op.plan_backward(*sizes)
        yield _variant(shape, op.kernels.delta_kernel, "attention_delta", op.Plan(64, 64, 4, 3))
        yield _variant(shape, op.kernels.dkdv_kernel, "attention_dkdv", backward)
        yield _variant(shape, op.kernels.dq_kernel, "attention_dq", backward)


def _variant(
    shape: Shape, kernel: Any, name: str, plan: Any, archs: tuple[int, ...] = ARCHITECTURES
) -> Variant:
    constants: dict[str, Any] = {
        "C": shape.heads * shape.size, "HEADS": shape.heads, "S": shape.tokens,
        "LAST": shape.last, "BLOCK_M": plan.block_m, "BLOCK_N": plan.block_n,
        "BLOCK_D": shape.size, "UP": False,
    }  # fmt: skip
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    pointers = dict.fromkeys(("qkv", "out", "dy", "y", "dqkv"), shape.dtype)
    pointers |= dict.fromkeys(("lse", "delta"), "fp32")
    return Variant(
        kernel,
        name,
        shape.name,
        signature_of(kernel, pointers, constants, floats=("factor", "root")),
        constants,
        plan.num_warps,
        wide=3 if name == "attention" else 2,  # each of q, k, v; of dy and y; of dy and qkv
        num_stages=plan.num_stages,
        archs=archs,
    )
