"""How the kernels of `group_norm` are launched: tiles, warps, and which of two forms (`splits`):

- whole: a program owns all pixels of its groups: one group in contiguous memory; in channels_last,
  where a group's channels may be 12 bytes among hundreds, as many groups side by side as make 48
  bytes or more (`plan_forward`, `plan_backward`);
- split: programs own blocks of pixels; partial statistics (see `statistics`) are written, combined
  for each group, and applied in a second pass. For batches too small to fill a GPU by whole groups,
  and where the partial statistics are there already: then nothing is read for them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from fasttrain_kernels import dispatch
from fasttrain_kernels._tiles import Plan, power_of_2
from fasttrain_kernels.statistics import chunk_pixels

__all__ = [
    "MOST_BLOCKS",
    "WholePlan",
    "groups_together",
    "most_blocks",
    "plan_backward",
    "plan_forward",
    "plan_split",
    "plan_statistics",
    "splits",
]


class WholePlan(NamedTuple):
    """Launch of a whole form: groups a program, whether one tile holds them, the tile, and warps of
    32 threads."""

    together: int
    fits: bool
    block_c: int
    block_p: int
    num_warps: int

    @property
    def sizes(self) -> dict[str, Any]:
        """As the kernels' arguments, with the launch options. From eight warps on a thread has
        128 registers, said outright: the assembler would rather spill a few than exceed 64 of
        sixteen warps, or 80 of eight. AMD's compiler has no such option."""
        most = {"maxnreg": 128} if self.num_warps >= 8 and not dispatch.ROCM else {}
        return {
            "GT": self.together, "FITS": self.fits, "BLOCK_C": self.block_c,
            "BLOCK_P": self.block_p, "num_warps": self.num_warps, **most,
        }  # fmt: skip


# Fewer programs than this (two for each of an H100's 132 processors) leave a GPU half idle.
_ENOUGH_PROGRAMS = 264


MOST_BLOCKS = 1024
"""Chunks or blocks of pixels that a program combines at once."""


def most_blocks(group_channels: int) -> int:
    """The same for wide groups: at most 4,096 values a tile, 32 in each thread."""
    return min(MOST_BLOCKS, max(1, 4096 // power_of_2(group_channels)))


def groups_together(groups: int, group_channels: int) -> int:
    """Groups a program takes in channels_last: the fewest that divide all and make at least 24
    channels, a multiple of 8, so that each pixel's part begins on 16 bytes and is read in 128-bit
    words; where there is no such number, at least 24 channels, or all."""
    divisors = [n for n in range(1, groups + 1) if groups % n == 0]
    wide = [n for n in divisors if n * group_channels >= 24]
    aligned = [n for n in wide if n * group_channels % 8 == 0]
    return (aligned or wide or [groups])[0]


def _plan(
    groups: int,
    group_channels: int,
    pixels: int,
    last: bool,
    *,
    resident: int,
    a_thread: int = 32,
    loop: tuple[int, int],
) -> WholePlan:
    """A tile of at most `resident` elements stays in registers, `a_thread` each: enough for several
    128-bit loads under way, and at most 16 warps, from where a thread has 128 registers. Otherwise
    a loop, over tiles of so many elements by so many warps."""
    together = groups_together(groups, group_channels) if last else 1
    block_c, block_p = power_of_2(group_channels * together), power_of_2(pixels)
    size = block_c * block_p
    if size <= resident:
        warps = min(16, max(1, size // (32 * a_thread)))
        return WholePlan(together, True, block_c, block_p, warps)
    elements, warps = loop
    if last:  # the width stays whole
        block_p = max(1, min(block_p, elements // block_c))
    else:
        block_p = min(block_p, elements)
        block_c = min(block_c, elements // block_p)
    return WholePlan(together, False, block_c, block_p, warps)


# The fixed launch rules, read off the compiled kernels (benchmarks/aot.py): nothing spills, and one
# or two programs fill a processor, so that what all of them are about to read again is still in the
# cache. channels_last needs more registers: there a tile holds half as much.


def plan_forward(groups: int, group_channels: int, pixels: int, last: bool) -> WholePlan:
    """Launch of the whole forward kernel."""
    if last:
        return _plan(groups, group_channels, pixels, last, resident=16384, loop=(8192, 16))
    return _plan(groups, group_channels, pixels, last, resident=32768, loop=(4096, 8))


def plan_backward(groups: int, group_channels: int, pixels: int, last: bool) -> WholePlan:
    """Launch of the whole backward kernel, which holds two tiles instead of one."""
    if last:
        return _plan(
            groups, group_channels, pixels, last, resident=8192, a_thread=16, loop=(4096, 16)
        )
    return _plan(groups, group_channels, pixels, last, resident=16384, loop=(4096, 8))


def plan_split(channels: int, pixels: int, last: bool) -> Plan:
    """Tiles of 4,096 elements, long along what is contiguous in memory."""
    most_c, most_p = power_of_2(channels), power_of_2(pixels)
    block_c = min(most_c, 64) if last else min(most_c, max(1, 4096 // min(most_p, 512)))
    block_p = min(most_p, 4096 // block_c)
    return Plan(block_c, block_p, max(1, block_c * block_p // 1024))


def plan_statistics(channels: int, pixels: int) -> Plan:
    """A chunk of pixels by at most 32 channels."""
    chunk = chunk_pixels(pixels)
    block_c = min(power_of_2(channels), 32)
    return Plan(block_c, chunk, max(1, block_c * chunk // 1024))


def splits(samples: int, groups: int, plan: WholePlan, given: bool = False) -> bool:
    """Whether the split form runs: not where one tile holds a program's groups; else where the
    statistics are given, or whole groups make too few programs."""
    return not plan.fits and (given or samples * (groups // plan.together) < _ENOUGH_PROGRAMS)


def plan_small(samples: int) -> tuple[int, int, int]:
    """Channels and samples of a tile of the small gradients, and warps: few channels a program, for
    there are few programs, and all loads of a batch of 128 under way."""
    return 8, min(128, power_of_2(samples)), 4
