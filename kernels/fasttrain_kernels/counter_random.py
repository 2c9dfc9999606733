"""Random numbers that are a function of (seed, stream, index of the sample), and of nothing else.

A generator with a state gives sample 17 another value when the batch, the number of processes or
the order of work changes. A counter-based one has no state: it encrypts a counter under a key. So
a run can be cut, resumed, accumulated or spread over ranks, and every sample keeps its draws.

Philox 4x32-10 (Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3",
SC 2011) maps four 32-bit counter words c and two key words k to four random words; ten rounds of

    hi_0, lo_0 = M_0 * c_0;  hi_1, lo_1 = M_1 * c_2           # 32 x 32 -> 64 bit products
    c = (hi_1 ^ c_1 ^ k_0, lo_1, hi_0 ^ c_3 ^ k_1, lo_0)
    k = (k_0 + W_0, k_1 + W_1)                                # mod 2^32

Here k is the seed (low word, high word) and c = (block within the sample, stream, index low, index
high). Block b yields the elements 4 b to 4 b + 3 of the flattened sample, from its words w_0..w_3:

- uniform: the leading bits of w_j that the dtype holds exactly (24 in float32), scaled to [0, 1);
- normal (Box and Muller): for the pairs (w_0, w_1) and (w_2, w_3),

      r = sqrt(-2 ln u),  u = w_j 2^-32 + 2^-33 in (0, 1],  so that r <= 6.77 and ln 0 never occurs
      (r cos t, r sin t),  t = 2 pi w_{j+1} 2^-32

    latents = counter_normal(seed=0, stream=1, indices=torch.arange(64), shape=(3, 64, 64))
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fasttrain_kernels.dispatch import Impl

__all__ = ["counter_normal", "counter_uniform", "philox_4x32_10"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

# Bits of a random word that each dtype holds exactly, hence with no rounding up to 1.
_UNIFORM_BITS = {torch.float64: 24, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}

# Blocks computed at once: their words (8 bytes each) and temporaries stay in a core's cache.
_CHUNK_BLOCKS = 1 << 15


def _multiply(word: Tensor, multiplier: int) -> tuple[Tensor, Tensor]:
    """High and low 32 bits of word * multiplier, both unsigned and held in int64.

    With multiplier - 2^32, which is negative and above -2^31, the product fits in int64; the
    arithmetic shift then floors, and adding the word back undoes the subtraction.
    """
    product = word * (multiplier - (1 << 32))
    return (product >> 32).add_(word), product.bitwise_and_(_MASK)


def philox_4x32_10(
    counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ten rounds of Philox: four random words for each counter.

    Args:
        counter: four int64 tensors of values in [0, 2^32), of shapes that broadcast together: words
            that many counters share are then multiplied once.
        key: two ints in [0, 2^32).

    Returns:
        Four int64 tensors of values in [0, 2^32).
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        high0, low0 = _multiply(c0, _MULTIPLIERS[0])
        high1, low1 = _multiply(c2, _MULTIPLIERS[1])
        c0, c1, c2, c3 = high1 ^ (c1 ^ k0), low1, high0 ^ (c3 ^ k1), low0
        k0, k1 = (k0 + _KEY_STEPS[0]) & _MASK, (k1 + _KEY_STEPS[1]) & _MASK
    return c0, c1, c2, c3


def _fill(out: Tensor, seed: int, stream: int, indices: Tensor, dtype: torch.dtype | None) -> None:
    """Write the draws of each sample into out [N, numel]; `dtype` of uniforms, None for normals."""
    numel = out.shape[1]
    blocks = torch.arange((numel + 3) // 4, device=out.device)
    key = (seed & _MASK, seed >> 32)
    for samples, rows in _chunks(indices, out, len(blocks)):
        column = samples[:, None]
        counter = (blocks[None], torch.full_like(column, stream), column & _MASK, column >> 32)
        words = torch.broadcast_tensors(*philox_4x32_10(counter, key))
        values = _normals(words) if dtype is None else _uniforms(words, dtype)
        rows.copy_(values.flatten(1)[:, :numel])
