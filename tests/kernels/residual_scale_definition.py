"""The definition of residual_scale in float64, its inputs, and the ops compared with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fasttrain_kernels.residual_scale import residual_scale
from tests.kernels.support import guarded

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def definition(
    branch: Tensor, residual: Tensor, bias: Tensor | None = None, *, scale: float = 1.0
) -> Tensor:
    y = branch + residual
    if bias is not None:
        y = y + bias.reshape(-1, *[1] * (y.dim() - 2))
    return y * scale


def triton_op(*args: Any, **kwargs: Any) -> Any:
    return residual_scale(*args, **kwargs, impl="triton")


def reference_op(*args: Any, **kwargs: Any) -> Any:
    return residual_scale(*args, **kwargs, impl="reference")


OPS = {"triton": triton_op, "reference": reference_op}


def make_inputs(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: torch.memory_format = torch.contiguous_format,
    *,
    bias: torch.dtype | None = torch.float32,
    mean: float = 0.5,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(size: tuple[int, ...], own: torch.dtype) -> Tensor:
        values = torch.randn(size, generator=generator) + mean
        if len(size) == 4:
            values = values.contiguous(memory_format=layout)
        return guarded(values, own).requires_grad_()

    inputs = {"branch": draw(shape, dtype), "residual": draw(shape, dtype)}
    if bias is not None:
        inputs["bias"] = draw(shape[1:2], bias)
    return inputs
