"""The definition of attention in float64, its inputs, and the comparison of an op with it."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import torch
from torch import Tensor

from fasttrain_kernels import attention
from tests.kernels.support import TOLERANCE, guarded, relative_error

op: Any = import_module("fasttrain_kernels.attention")
LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def make(
    shape: tuple[int, ...], dtype: torch.dtype, layout: str, spread: float = 1.0, seed: int = 0
) -> Tensor:
    samples, heads, size, height, width = shape
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(samples, 3 * heads * size, height, width, generator=generator) * spread
    values = values.contiguous(memory_format=LAYOUTS[layout])
    return guarded(values, dtype).requires_grad_()


def definition(qkv: Tensor, heads: int) -> Tensor:
    samples, channels, height, width = qkv.shape
    size = channels // 3 // heads
    q, k, v = qkv.reshape(samples, 3, heads, size, height * width).unbind(1)
    weights = torch.einsum("nhdq,nhdk->nhqk", q, k).div(math.sqrt(size)).softmax(-1)
    return torch.einsum("nhqk,nhdk->nhdq", weights, v).reshape(samples, -1, height, width)


def triton_op(qkv: Tensor, heads: int) -> Tensor:
    return attention(qkv, heads=heads, impl="triton")


def reference(qkv: Tensor, heads: int) -> Tensor:
    return attention(qkv, heads=heads, impl="reference")


OPS = {"triton": triton_op, "reference": reference}


def assert_same_as_definition(function: Any, qkv: Tensor, heads: int, factor: float = 1.0) -> None:
    exact = qkv.detach().double().requires_grad_()
    expected = definition(exact, heads)
    y = function(qkv, heads)
    tolerance = factor * TOLERANCE[qkv.dtype]
    assert y.dtype == qkv.dtype
    assert y.shape == expected.shape
    assert relative_error(y, expected) < tolerance
    generator = torch.Generator().manual_seed(1)
    dy = torch.randn(y.shape, generator=generator)
    dy = guarded(torch.empty_like(y, device="cpu", dtype=torch.float32).copy_(dy), y.dtype)
    (grad,) = torch.autograd.grad(y, qkv, dy)
    (expected_grad,) = torch.autograd.grad(expected, exact, dy.double())
    assert grad.dtype == qkv.dtype
    assert relative_error(grad, expected_grad) < tolerance
