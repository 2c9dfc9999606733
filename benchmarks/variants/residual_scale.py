"""Variants of the residual sum: every map of the published networks in channels_last, with the
statistics, as a U-Net calls it; at some, also without, and in contiguous memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from benchmarks.compiled import Variant, signature_of
from benchmarks.networks import PUBLISHED, calls

__all__ = ["variants"]

op: Any = import_module("fasttrain_kernels.residual_scale")  # the package has the function there


@dataclass(frozen=True)
class Shape:
    channels: int
    resolution: int
    dtype: str = "bf16"


SOME = (
    *(Shape(*adm) for adm in ((192, 64), (384, 32), (576, 16), (768, 8))),
    *(Shape(*ncsnpp) for ncsnpp in ((128, 64), (256, 32))),
    Shape(192, 64, "fp32"),
)


def variants() -> Iterator[Variant]:
    found = {
        Shape(*call["x"].shape[1:3]) for net in PUBLISHED for call in calls(net, "residual_scale")
    }
    for shape in sorted(found - set(SOME), key=str):
        yield _variant(shape, last=True, statistics=True)
    for shape in SOME:
        for last in (True, False):
            for statistics in (True, False):
                yield _variant(shape, last, statistics)


def _variant(shape: Shape, last: bool, statistics: bool) -> Variant:
    itemsize = 2 if shape.dtype == "bf16" else 4
    pixels = shape.resolution**2
    plan = op.plan(shape.channels, pixels, itemsize, last, statistics)
    constants: dict[str, Any] = {
        "C": shape.channels, "HW": pixels, "LAST": last,
        "BLOCK_P": plan.block_p, "BLOCK_C": plan.block_c,
    }  # fmt: skip
    if not statistics:
        constants["statistics"] = None
    types = dict.fromkeys(("branch", "residual", "y"), shape.dtype)
    types |= {"bias": "fp32", "statistics": "fp32"}
    size = f"{shape.channels}x{shape.resolution}x{shape.resolution}"
    name = [size, shape.dtype, "nhwc" if last else "nchw"]
    loads = plan.block_p * plan.block_c * itemsize // (16 * 32 * plan.num_warps)
    return Variant(
        op._kernel,
        "residual_scale",
        "-".join([*name, "statistics"] if statistics else name),
        signature_of(op._kernel, types, constants, floats=("scale",)),
        constants,
        plan.num_warps,
        wide=2 * loads,
    )
