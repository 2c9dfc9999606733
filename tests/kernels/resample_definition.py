"""The definition of resample2d in float64, its inputs, and the ops compared with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fasttrain_kernels.resample import Mode, resample2d
from tests.kernels.support import guarded

BOX, SMOOTH = (1, 1), (1, 3, 3, 1)
LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
MODES: tuple[Mode, ...] = ("up", "down")


def definition(x: Tensor, mode: str, *, taps: tuple[float, ...] = BOX) -> Tensor:
    """As sums over pixels, from the formulas of one axis, by matrices without any convolution."""
    for axis in (2, 3):
        x = (matrix(x.shape[axis], mode, taps).to(x) @ x.movedim(axis, -2)).movedim(-2, axis)
    return x


def matrix(size: int, mode: str, taps: tuple[float, ...]) -> Tensor:
    """[outputs, size] of one axis: y[o] = sum over t of f[t] x[2 o + t - p] down, its transpose
    twice up."""
    small = size if mode == "up" else size // 2
    down = torch.zeros(small, 2 * small, dtype=torch.float64)
    for o in range(small):
        for t, tap in enumerate(taps):
            place = 2 * o + t - (len(taps) // 2 - 1)
            if 0 <= place < 2 * small:
                down[o, place] += tap / sum(taps)
    return down if mode == "down" else 2 * down.T


def triton_op(x: Tensor, mode: Mode, **kwargs: Any) -> Tensor:
    return resample2d(x, mode, **kwargs, impl="triton")


def reference_op(x: Tensor, mode: Mode, **kwargs: Any) -> Tensor:
    return resample2d(x, mode, **kwargs, impl="reference")


OPS = {"triton": triton_op, "reference": reference_op}


def make_input(
    shape: tuple[int, ...],
    mode: str,
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
    seed: int = 0,
) -> Tensor:
    """An input whose smaller map, itself or its result, is of `shape`."""
    samples, channels, height, width = shape
    times = 1 if mode == "up" else 2
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(samples, channels, times * height, times * width, generator=generator) + 0.5
    return guarded(x.contiguous(memory_format=layout), dtype).requires_grad_()
