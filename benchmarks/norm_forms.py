"""Which form of group norm's backward pass fills a GPU better in channels_last, from counts alone.

    python -m benchmarks.norm_forms

The whole form (`fasttrain_kernels/_group_norm_plans.py`) takes whole groups side by side, whose
channels seldom fill a power of two: lanes idle. The split form has tiles of 64 channels, all lanes
busy, but reads both activations twice. Instructions of a warp are those of the committed table of
compiled kernels; a kernel takes as long as its instructions or its bytes, whichever are longer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fasttrain.analysis.speed.rates import COPY, GPUS
from fasttrain_kernels._group_norm_plans import plan_backward, plan_split

__all__ = ["norm_forms_part"]

RESULTS = Path(__file__).parent / "results"
SHAPES = ((192, 64), (384, 32), (576, 16))
"""Channels and pixels a side of ADM's levels whose whole form is a loop."""
OPTIONS = "bf16-nhwc-shift_in-scale-shift-silu"
SAMPLES, GROUPS, GPU = 128, 32, GPUS["h200"]


def times(rows: Sequence[Mapping[str, Any]], channels: int, side: int) -> dict[str, float]:
    """Microseconds of both forms, and the share of lanes that the whole one fills."""
    variant, pixels = f"{channels}x{side}x{side}-{OPTIONS}", side * side
    issued = {
        row["kernel"]: row["issued"]
        for row in rows
        if (row["arch"], row["variant"]) == (f"sm_{GPU.arch}", variant)
    }
    passed = SAMPLES * channels * pixels * 2 / (COPY * GPU.bandwidth)

    def seconds(kernel: str, warps: int, passes: int) -> float:
        return max(issued[kernel] * warps / GPU.issued, passes * passed)

    whole = plan_backward(GROUPS, channels // GROUPS, pixels, True)
    warps = whole.num_warps * SAMPLES * GROUPS // whole.together
    tile = plan_split(channels, pixels, True)
    tiles = tile.num_warps * tile.programs(SAMPLES, channels, pixels)
    parts = (("group_norm_sums", 2), ("group_norm_apply_backward", 3))
    return {
        "lanes": channels // GROUPS * whole.together / whole.block_c,
        "whole": 1e6 * seconds("group_norm_backward", warps, 3),
        "split": 1e6 * sum(seconds(kernel, tiles, passes) for kernel, passes in parts),
    }


def norm_forms_part(rows: Sequence[Mapping[str, Any]]) -> str:
    """The page's table: a shape a line."""
    lines = [
        f"From `benchmarks/results/aot.json`: microseconds of a norm's backward pass at {SAMPLES} "
        f"images, {GPU.name}, counted and not measured:",
        "",
        "| shape | lanes of the whole form | whole | split |",
        "|---|---|---|---|",
    ]
    for channels, side in SHAPES:
        found = times(rows, channels, side)
        cells = f"{found['lanes']:.0%} | {found['whole']:.0f} | {found['split']:.0f}"
        lines.append(f"| {channels} x {side} x {side} | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(norm_forms_part(json.loads((RESULTS / "aot.json").read_text())))
