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
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from fasttrain_kernels._counter_random_kernel import kernel as _kernel
from fasttrain_kernels._registration import op
from fasttrain_kernels.dispatch import Impl, launch, resolve

__all__ = ["counter_normal", "counter_uniform", "philox_4x32_10"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_STEPS = (0x9E3779B9, 0xBB67AE85)

# Bits of a random word that each dtype holds exactly, hence with no rounding up to 1.
_UNIFORM_BITS = {torch.float64: 24, torch.float32: 24, torch.float16: 11, torch.bfloat16: 8}

# Blocks computed at once, which bounds the memory of the words and temporaries to about 30 MB.
_CHUNK_BLOCKS = 1 << 18


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


def _random_words(seed: int, stream: int, indices: Tensor, blocks: int) -> tuple[Tensor, ...]:
    """The four words of every block: int64 tensors [len(indices), blocks]."""
    block = torch.arange(blocks, device=indices.device)[None]
    index = indices[:, None]
    counter = (block, torch.full_like(index, stream), index & _MASK, index >> 32)
    return torch.broadcast_tensors(*philox_4x32_10(counter, (seed & _MASK, seed >> 32)))


def _uniforms(words: tuple[Tensor, ...], out: Tensor) -> None:
    """Uniforms in [0, 1) into out [N, blocks, 4]."""
    bits = _UNIFORM_BITS[out.dtype]
    for j, word in enumerate(words):
        torch.mul(word >> (32 - bits), 2.0**-bits, out=out[..., j])


def _normals(words: tuple[Tensor, ...], out: Tensor) -> None:
    """Standard normals, computed in float32, into out [N, blocks, 4]."""
    for j in (0, 2):
        uniform = words[j].float().mul_(2.0**-32).add_(2.0**-33)
        radius = uniform.log_().mul_(-2).sqrt_()
        angle = words[j + 1].float().mul_(2 * math.pi * 2.0**-32)
        torch.mul(radius, angle.cos(), out=out[..., j])
        torch.mul(radius, angle.sin_(), out=out[..., j + 1])


def _reference(
    write: Callable[[tuple[Tensor, ...], Tensor], None],
    seed: int,
    stream: int,
    indices: Tensor,
    numel: int,
    dtype: torch.dtype,
) -> Tensor:
    """[N, numel] in plain torch, a chunk of samples at a time."""
    blocks = (numel + 3) // 4
    out = torch.empty(len(indices), blocks, 4, device=indices.device, dtype=dtype)
    at_once = max(1, _CHUNK_BLOCKS // max(1, blocks))
    for samples, part in zip(indices.split(at_once), out.split(at_once), strict=True):
        write(_random_words(seed, stream, samples, blocks), part)
    return out.flatten(1)[:, :numel]


# --------------------------------------------------------------------------------------- launcher


_BLOCK = 256  # 1,024 values a program of 4 warps: two 128-bit stores of float32 a thread


def _int32(word: int) -> int:
    """The same 32 bits as a signed number."""
    return word - (1 << 32) if word >> 31 else word


def _allocate(
    indices: Tensor,
    seed_low: int,
    seed_high: int,
    stream: int,
    numel: int,
    normal: bool,
    dtype: torch.dtype,
) -> Tensor:
    return torch.empty(indices.shape[0], numel, device=indices.device, dtype=dtype)


@op("counter_draw", fake=_allocate)
def _run(
    indices: Tensor,
    seed_low: int,
    seed_high: int,
    stream: int,
    numel: int,
    normal: bool,
    dtype: torch.dtype,
) -> Tensor:
    """[N, numel]. The seed in words: a schema's int has 63 bits and a sign."""
    out = _allocate(indices, seed_low, seed_high, stream, numel, normal, dtype)
    if out.numel():
        words = {"seed_low": seed_low, "seed_high": seed_high, "stream": stream}
        launch(
            _kernel, (len(indices) * -(-numel // (4 * _BLOCK)),),
            indices=indices, out=out, **{name: _int32(word) for name, word in words.items()},
            numel=numel, NORMAL=normal, BITS=_UNIFORM_BITS[dtype], BLOCK=_BLOCK, num_warps=4,
        )  # fmt: skip
    return out


# ----------------------------------------------------------------------------------- public draws


def _draw(
    normal: bool,
    seed: int,
    stream: int,
    indices: Tensor,
    shape: Sequence[int],
    device: torch.device | str | None,
    dtype: torch.dtype,
    impl: Impl,
) -> Tensor:
    """What the two public functions share: checks, the implementation, the final shape."""
    numel = math.prod(shape)
    _check(seed, stream, indices, numel, dtype)
    indices = indices.to(device)
    if resolve(impl, indices.new_empty(0, dtype=dtype)) == "triton":
        words = (seed & _MASK, seed >> 32, stream)
        out = _run(indices.contiguous(), *words, numel, normal, dtype)
    else:
        write = _normals if normal else _uniforms
        out = _reference(write, seed, stream, indices, numel, dtype)
    return out.reshape(indices.shape[0], *shape)


def _check(seed: int, stream: int, indices: Tensor, numel: int, dtype: torch.dtype) -> None:
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be in [0, 2^64), got {seed}")
    if not 0 <= stream < 1 << 32:
        raise ValueError(f"stream must be in [0, 2^32), got {stream}")
    if indices.dim() != 1 or indices.dtype != torch.int64:
        raise ValueError(
            f"indices must be int64 of shape [N], got {indices.dtype} {list(indices.shape)}"
        )
    if dtype not in _UNIFORM_BITS:
        raise ValueError(f"draws are float32, float64, float16 or bfloat16, got dtype={dtype}")
    if numel > 1 << 34:
        raise ValueError(f"a sample has at most 2^34 elements, got {numel}")
    if torch.compiler.is_compiling():
        return  # a graph cannot ask for a value
    if indices.device.type == "cpu":
        if len(indices) and int(indices.min()) < 0:
            raise ValueError(f"indices must not be negative, got {int(indices.min())}")
    elif indices.is_cuda:  # without waiting for the device: a draw would stall every step
        torch._assert_async((indices >= 0).all(), "indices must not be negative")


def counter_normal(
    seed: int,
    stream: int,
    indices: Tensor,
    shape: Sequence[int],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    impl: Impl = "auto",
) -> Tensor:
    """Standard normal draws: sample i is a function of (seed, stream, indices[i]) alone.

    Args:
        seed: in [0, 2^64). The key: another seed, unrelated draws.
        stream: in [0, 2^32). What the draw is for; streams of a seed are independent.
        indices: int64 [N], not negative. Equal indices give equal samples.
        shape: of one sample. Its flattened elements are numbered: a shorter sample is a prefix of
            a longer one.
        device: of the result; that of `indices` by default.
        dtype: float32 (computed so), or float64, float16, bfloat16: the same values, converted.
        impl: see `fasttrain_kernels.dispatch.resolve`; float64 is the reference's under "auto".

    Returns:
        [N, *shape], |value| <= 6.77. Bit for bit the same for every batch composition; from the
        other implementation or on another device within 4e-6, the rounding of log, sin and cos.

    Raises:
        ValueError: an argument outside the ranges above. A negative index on a GPU is caught by a
            device-side assertion instead, because looking at it would wait for the device.
    """
    return _draw(True, seed, stream, indices, shape, device, dtype, impl)


def counter_uniform(
    seed: int,
    stream: int,
    indices: Tensor,
    shape: Sequence[int],
    *,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    impl: Impl = "auto",
) -> Tensor:
    """Uniform draws in [0, 1); arguments and errors as in `counter_normal`.

    Returns:
        [N, *shape]: multiples of 2^-24 (2^-11 in float16, 2^-8 in bfloat16), so that no rounding
        reaches 1. Bit for bit the same on every device. Uniforms and normals of one (seed, stream,
        index) come from the same random words: take another stream where both are needed.
    """
    return _draw(False, seed, stream, indices, shape, device, dtype, impl)
