"""Variants of group norm: the norms of ADM at 64x64 (modulated; wider ones in the decoder), of
NCSN++ at 32x32 (shift before the norm, none in its attention) and of the digits' network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from benchmarks.compiled import Variant, signature_of
from fasttrain_kernels import group_norm

__all__ = ["variants"]


@dataclass(frozen=True)
class Norm:
    """A group norm of a network: `inputs` are those present beside x."""

    channels: int
    resolution: int
    dtype: str
    inputs: tuple[str, ...] = ("weight", "bias", "scale", "shift")
    silu: bool = True

    @property
    def name(self) -> str:
        extra = [name for name in self.inputs if name not in ("weight", "bias")]
        size = f"{self.channels}x{self.resolution}x{self.resolution}"
        return "-".join([size, self.dtype, *extra, *(["silu"] if self.silu else [])])


_SHIFT_IN = ("weight", "bias", "shift_in")
_PLAIN = ("weight", "bias")

NORMS = (
    Norm(192, 64, "bf16"),
    Norm(384, 64, "bf16", _PLAIN),
    Norm(384, 32, "bf16"),
    Norm(576, 32, "bf16", _PLAIN, silu=False),
    Norm(576, 16, "bf16"),
    Norm(768, 8, "bf16"),
    Norm(192, 64, "fp32"),
    Norm(384, 32, "fp32"),
    Norm(768, 8, "fp32"),
    Norm(128, 32, "bf16", _SHIFT_IN),
    Norm(256, 16, "bf16", _PLAIN, silu=False),
    Norm(256, 32, "fp32", _SHIFT_IN),
    Norm(64, 8, "fp32", _SHIFT_IN),
)


def variants() -> Iterator[Variant]:
    """Each norm forward and backward, as when every gradient is wanted."""
    for norm in NORMS:
        for backward in (False, True):
            yield _variant(norm, backward)


def _variant(norm: Norm, backward: bool) -> Variant:
    groups = min(32, norm.channels // 4)
    sizes = (norm.channels // groups, norm.resolution**2)
    plan = (group_norm.plan_backward if backward else group_norm.plan_forward)(*sizes)
    kernel = group_norm._backward_kernel if backward else group_norm._forward_kernel
    constants: dict[str, Any] = {
        "GROUPS": groups, "CG": sizes[0], "HW": sizes[1], "SILU": norm.silu,
        "FITS": plan.fits, "BLOCK_C": plan.block_c, "BLOCK_P": plan.block_p,
    }  # fmt: skip
    types = dict.fromkeys(("x", "y", "dx", "dy", "shift_in", "scale", "shift"), norm.dtype)
    types |= dict.fromkeys(("weight", "bias", "means", "rstds"), "fp32")
    types |= dict.fromkeys(("sums_a", "sums_b", "sums_dx"), "fp32")
    absent = {name for name in ("shift_in", "scale", "shift") if name not in norm.inputs}
    if "shift_in" in absent:
        absent.add("sums_dx")
    constants |= dict.fromkeys(absent & set(kernel.arg_names))
    tile_bytes = plan.block_c * plan.block_p * (2 if norm.dtype == "bf16" else 4)
    return Variant(
        kernel,
        "group_norm_silu_backward" if backward else "group_norm_silu",
        norm.name,
        signature_of(kernel, types, constants),
        constants,
        plan.num_warps,
        wide=max(1, tile_bytes // (16 * 32 * plan.num_warps)) * (2 if backward else 1),
    )
