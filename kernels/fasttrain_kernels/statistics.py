"""Partial statistics: what one op tells the next norm, so that the norm need not read its input.

An op that writes an activation x [N, C, *] may also write, in float32 [N, chunks, C, 2], the mean
and the sum of squared deviations from it of every channel over each chunk of pixels: chunk j holds
the pixels j P to min((j + 1) P, pixels) - 1 of the flattened trailing dimensions, P =
`chunk_pixels(pixels)`. They are of x as stored, after rounding to its dtype.

A group's statistics follow exactly (Chan, Golub and LeVeque, 1983), for parts i of n_i values:

    mean = sum(n_i mean_i) / n,     M2 = sum(M2_i + n_i (mean_i - mean)^2)

so nothing cancels, a shift of a channel only moves its means, and the statistics of a concatenation
along the channels are the concatenation of the statistics.

    statistics = torch.cat([partial_statistics(x), partial_statistics(skip)], dim=2)
"""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from fasttrain_kernels.dispatch import tl, triton

__all__ = [
    "chunk_count",
    "chunk_pixels",
    "partial_statistics",
    "statistics_shape",
    "store_statistics",
]

_MOST_PIXELS = 256


def chunk_pixels(pixels: int) -> int:
    """Pixels of a chunk: a power of two, at most 256; one chunk holds a smaller map."""
    return min(_MOST_PIXELS, 1 << max(0, pixels - 1).bit_length())


def chunk_count(pixels: int) -> int:
    return -(-pixels // chunk_pixels(pixels)) if pixels else 0


def statistics_shape(x: Tensor) -> tuple[int, int, int, int]:
    """[N, chunks, C, 2] of the partial statistics of x [N, C, *]."""
    return x.shape[0], chunk_count(math.prod(x.shape[2:])), x.shape[1], 2


def partial_statistics(x: Tensor) -> Tensor:
    """The partial statistics of x [N, C, *], in plain torch: float32 [N, chunks, C, 2] (float64 for
    a float64 x). Without gradient: a norm that is given them differentiates through x."""
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    samples, chunks, channels, _ = statistics_shape(x)
    pixels = math.prod(x.shape[2:])
    values = x.detach().reshape(samples, channels, pixels).to(dtype)
    size = chunk_pixels(pixels)
    padding = chunks * size - pixels
    values = F.pad(values, (0, padding)).view(samples, channels, chunks, size)
    live = F.pad(values.new_ones(pixels), (0, padding)).view(chunks, size)
    mean = values.sum(3) / live.sum(1)
    m2 = ((values - mean[..., None]) * live).square().sum(3)
    return torch.stack([mean, m2], dim=3).transpose(1, 2).contiguous()


@triton.jit
def store_statistics(
    statistics, values, live, sample, chunk, c0,
    C: tl.constexpr, HW: tl.constexpr, BLOCK_C: tl.constexpr, CHUNK: tl.constexpr,
):  # fmt: skip
    """For kernels: those of a tile, BLOCK_C channels from c0 by all pixels of a chunk, float32."""
    chunks: tl.constexpr = (HW + CHUNK - 1) // CHUNK
    channels = c0 + tl.arange(0, BLOCK_C)
    count = tl.minimum(HW - chunk * CHUNK, CHUNK).to(tl.float32)
    mean = tl.sum(tl.where(live, values, 0.0), axis=1) / count
    difference = tl.where(live, values - mean[:, None], 0.0)
    at = statistics + ((sample * chunks + chunk) * C + channels) * 2
    tl.store(at, mean, mask=channels < C)
    tl.store(at + 1, tl.sum(difference * difference, axis=1), mask=channels < C)
