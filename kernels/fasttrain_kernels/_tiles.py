"""Tiles: what the memory-bound kernels have in common, and how their launches are planned.

A tile is BLOCK_C channels by BLOCK_P pixels of one sample, in either memory format; LAST means
channels_last. Programs go along what lies side by side in memory. Sizes are constants of a kernel:
only so does Triton see addresses that are aligned for 128-bit loads.
"""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from fasttrain_kernels import dispatch
from fasttrain_kernels.dispatch import in_channels_last, tl, triton

__all__ = ["Plan", "layout_of", "load_at", "offsets_at", "place", "power_of_2", "sigmoid"]


def power_of_2(n: int) -> int:
    """The least that is not below n."""
    return 1 << max(0, n - 1).bit_length()


def layout_of(x: Tensor) -> torch.memory_format:
    """Of the two that the kernels know, that of x."""
    return torch.channels_last if in_channels_last(x) else torch.contiguous_format


class Plan(NamedTuple):
    """Launch of a kernel: channels and pixels of a tile, warps of 32 threads."""

    block_c: int
    block_p: int
    num_warps: int

    @property
    def sizes(self) -> dict[str, Any]:
        """As the kernels' arguments."""
        return {"BLOCK_C": self.block_c, "BLOCK_P": self.block_p, "num_warps": self.num_warps}

    def programs(self, samples: int, channels: int, pixels: int) -> int:
        """Tiles of `samples` maps."""
        return samples * -(-channels // self.block_c) * -(-pixels // self.block_p)

    def grid(self, samples: int, channels: int, pixels: int) -> tuple[int, int]:
        """The same by two axes: blocks of pixels, and of channels."""
        return samples * -(-pixels // self.block_p), -(-channels // self.block_c)


@triton.jit
def place(C: tl.constexpr, HW: tl.constexpr, LAST: tl.constexpr,
          BLOCK_C: tl.constexpr, BLOCK_P: tl.constexpr):  # fmt: skip
    """This program's sample (int64), first channel, and block of pixels."""
    across: tl.constexpr = (C + BLOCK_C - 1) // BLOCK_C
    along: tl.constexpr = (HW + BLOCK_P - 1) // BLOCK_P
    tile = tl.program_id(0) % (across * along)
    part = tile // across if LAST else tile % along
    c0 = (tile % across if LAST else tile // along) * BLOCK_C
    return (tl.program_id(0) // (across * along)).to(tl.int64), c0, part


@triton.jit
def offsets_at(rows, columns, channels, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
               LAST: tl.constexpr):  # fmt: skip
    """Offsets [channels, pixels] in a map of H x W, and which exist."""
    inside = (rows >= 0) & (rows < H) & (columns >= 0) & (columns < W)
    pixels = (rows.to(tl.int64) * W + columns) * (C if LAST else 1)
    offsets = channels.to(tl.int64)[:, None] * (1 if LAST else H * W) + pixels[None, :]
    return offsets, (channels < C)[:, None] & inside[None, :]


@triton.jit
def load_at(x, rows, columns, channels, C: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
            LAST: tl.constexpr):  # fmt: skip
    """A tile in float32, zero outside of the map."""
    offsets, live = offsets_at(rows, columns, channels, C, H, W, LAST)
    return tl.load(x + offsets, mask=live, other=0.0).to(tl.float32)


# Instructions of NVIDIA's alone, by name; elsewhere, and in the interpreter, the formula.
_BY_NAME: Any = None if tl is None else tl.constexpr(not dispatch.INTERPRETED and not dispatch.ROCM)


@triton.jit
def sigmoid(z):
    """1 / (1 + e^-z) in four instructions: a product, two approximations and a sum. Its error is at
    most 3e-7 of the value (kernels/README.md); `tl.sigmoid` takes twelve."""
    if _BY_NAME:
        result = tl.inline_asm_elementwise(
            "{ .reg .f32 t; mul.f32 t, $1, 0fBFB8AA3B; ex2.approx.ftz.f32 t, t;"
            " add.f32 t, t, 0f3F800000; rcp.approx.ftz.f32 $0, t; }",
            "=f,f", [z], dtype=tl.float32, is_pure=True, pack=1,
        )  # fmt: skip
    else:
        result = 1.0 / (1.0 + tl.exp2(-1.4426950408889634 * z))
    return result
