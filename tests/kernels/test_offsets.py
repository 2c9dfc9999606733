"""Offsets within one sample of 2^31 elements and more, which no test can allocate: what the kernels
work out for its last tile, against Python's integers."""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

import pytest
import torch

from fasttrain_kernels import _attention_kernels, _group_norm_kernels
from fasttrain_kernels.dispatch import tl, triton
from tests.kernels.support import DEVICE

_tile = _group_norm_kernels._tile
_offsets, _locate = _attention_kernels._offsets, _attention_kernels._locate


@triton.jit
def tile_kernel(out, c0, p0, C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr):
    offsets, _ = _tile(c0, p0, C, C, HW, LAST, 4, 8)
    place = tl.arange(0, 4)[:, None] * 8 + tl.arange(0, 8)[None, :]
    tl.store(out + place, offsets)


@triton.jit
def block_kernel(out, t0, C: tl.constexpr, S: tl.constexpr, LAST: tl.constexpr):
    offsets, _ = _offsets(t0, C, S, 16, LAST, 16, 16)
    place = tl.arange(0, 16)[:, None] * 16 + tl.arange(0, 16)[None, :]
    tl.store(out + place, offsets.to(tl.int64))


@triton.jit
def head_kernel(out, pair, C: tl.constexpr, S: tl.constexpr, LAST: tl.constexpr):
    first = _locate(out, tl.program_id(0) + pair, 3, C, C // 16, S, LAST)
    tl.store(out, first.to(tl.int64, bitcast=True) - out.to(tl.int64, bitcast=True))


SIZES = [(64, 256), (40_000, 65_536), (65_536, 65_536)]


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("channels", "pixels"), SIZES)
def test_tiles_of_a_norm(channels: int, pixels: int, last: bool) -> None:
    out = torch.zeros(4, 8, dtype=torch.int64, device=DEVICE)
    c0, p0 = channels - 4, pixels - 8
    tile_kernel[(1,)](out, c0, p0, channels, pixels, last, num_warps=1)
    c, p = torch.arange(c0, channels)[:, None], torch.arange(p0, pixels)[None, :]
    assert torch.equal(out.cpu(), c + p * channels if last else c * pixels + p)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("channels", "tokens"), SIZES)
def test_blocks_of_attention(channels: int, tokens: int, last: bool) -> None:
    """The last tokens; in contiguous memory a head of 16 channels must reach as far."""
    tokens = tokens if last or tokens == 256 else 2**28
    out = torch.zeros(16, 16, dtype=torch.int64, device=DEVICE)
    t0 = tokens - 16
    block_kernel[(1,)](out, t0, channels, tokens, last, num_warps=1)
    t, d = torch.arange(t0, tokens)[:, None], torch.arange(16)[None, :]
    assert torch.equal(out.cpu(), t * channels + d if last else t + d * tokens)


@pytest.mark.parametrize("last", [True, False])
@pytest.mark.parametrize(("channels", "tokens"), SIZES)
def test_the_last_head_of_attention(channels: int, tokens: int, last: bool) -> None:
    heads = channels // 16
    out = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    head_kernel[(1,)](out, 2 * heads - 1, channels, tokens, last, num_warps=1)
    expected = 3 * channels * tokens + (heads - 1) * 16 * (1 if last else tokens)
    assert out.item() == 8 * expected
