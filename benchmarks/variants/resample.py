"""Variants of resampling: every map of the published networks, ADM's with taps (1, 1) and NCSN++'s
with (1, 3, 3, 1), up and down, in both memory formats."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchmarks.compiled import Variant, signature_of
from benchmarks.networks import PUBLISHED, calls
from fasttrain_kernels import resample

__all__ = ["variants"]


def maps() -> list[tuple[int, int, bool]]:
    """Channels and resolution of the larger map, and whether the taps are (1, 3, 3, 1)."""
    found = set()
    for network in PUBLISHED:
        for call in calls(network, "resample2d"):
            channels, resolution = call["x"].shape[1:3]
            larger = resolution * 2 if call["args"][0] == "up" else resolution
            found.add((channels, larger, call["taps"] != (1, 1)))
    return sorted(found)


def variants() -> Iterator[Variant]:
    for channels, resolution, smooth in maps():
        for last in (True, False):
            for up in (True, False):
                yield _variant(channels, resolution, smooth, last, up)


def _variant(channels: int, resolution: int, smooth: bool, last: bool, up: bool) -> Variant:
    side = resolution // 2
    plan = resample.plan(channels, side**2, 2, last)
    kernel = resample.up_kernel if up else resample.down_kernel
    constants: dict[str, Any] = {
        "C": channels, "H": side, "W": side, "LAST": last, "SMOOTH": smooth,
        "BLOCK_C": plan.block_c, "BLOCK_P": plan.block_p,
    }  # fmt: skip
    layout, taps = "nhwc" if last else "nchw", "1331" if smooth else "11"
    tile = plan.block_c * plan.block_p * 2 // (16 * 32 * plan.num_warps)
    return Variant(
        kernel,
        "resample2d_up" if up else "resample2d_down",
        f"{channels}x{resolution}x{resolution}-{taps}-bf16-{layout}",
        signature_of(kernel, dict.fromkeys("xy", "bf16"), constants, floats=("factor",)),
        constants,
        plan.num_warps,
        wide=tile * _reads(smooth, last, up),
    )


def _reads(smooth: bool, last: bool, up: bool) -> int:
    """Tiles read by 128-bit loads: all in channels_last. In contiguous maps those of the columns
    that are the tile's own (two a pixel in the larger map); their neighbours left and right begin
    at odd places, so the smooth filter reads them one by one, from the cache."""
    rows = (3 if smooth else 1) if up else (4 if smooth else 2)
    columns = (3 if up else 4) if smooth and last else (1 if up else 2)
    return rows * columns
