"""Variants of group norm: every norm of the published networks in bfloat16 and channels_last; some
in contiguous memory, in float32, and in the split form of small batches."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from benchmarks.compiled import Variant, signature_of
from benchmarks.networks import PUBLISHED, calls
from fasttrain_kernels import _group_norm_kernels as kernels
from fasttrain_kernels import _group_norm_split as split_form
from fasttrain_kernels._group_norm_plans import (
    most_blocks,
    plan_backward,
    plan_forward,
    plan_small,
    plan_split,
    plan_statistics,
)
from fasttrain_kernels.statistics import chunk_count, chunk_pixels

__all__ = ["Norm", "split", "variants"]


@dataclass(frozen=True)
class Norm:
    """A group norm of a network: `inputs` are those present beside x, weight and bias.

    images: that share statistics, one below the other: then each channel is a group of its own.
    """

    channels: int
    resolution: int
    inputs: tuple[str, ...]
    silu: bool
    dtype: str = "bf16"
    last: bool = True
    activation: str = ""
    images: int = 0
    op: str = "group_norm"
    fork: bool = False

    @property
    def name(self) -> str:
        size = f"{self.channels}x{self.resolution}x{self.resolution}"
        layout = "nhwc" if self.last else "nchw"
        return "-".join([size, self.dtype, layout, *self.inputs, *(["silu"] if self.silu else [])])

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Groups, channels of each, pixels."""
        if self.images:
            return self.channels, 1, self.images * self.resolution**2
        groups = max(1, min(32, self.channels // 4))
        return groups, self.channels // groups, self.resolution**2


def published_norms() -> list[Norm]:
    """With the Triton kernels a norm after conv0 also takes that convolution's bias, as its
    shift_in, which plain PyTorch has added before."""
    found: dict[Norm, None] = {}
    for network in PUBLISHED:
        for call in calls(network, "group_norm"):
            names = ("shift_in", "scale", "shift")
            inputs = [name for name in names if call.get(name) is not None]
            if "scale" in inputs:
                inputs = list(names)
            channels, resolution = call["x"].shape[1:3]
            found[Norm(channels, resolution, tuple(inputs), call["activation"] == "silu")] = None
    return sorted(found, key=lambda norm: (norm.channels, norm.resolution, norm.inputs))


def variants() -> Iterator[Variant]:
    """Each norm forward and backward, as when every gradient is wanted."""
    norms = published_norms()
    modulated = [
        norm
        for norm in norms
        if "scale" in norm.inputs
        and (norm.channels, norm.resolution) in ((192, 64), (384, 32), (576, 16), (768, 8))
    ]
    others = [replace(norm, last=False) for norm in modulated]
    others += [
        replace(norm, dtype="fp32", last=last) for norm in modulated for last in (False, True)
    ]
    for norm in (*norms, *others):
        for backward in (False, True):
            yield _whole(norm, backward)
    for norm in modulated:
        yield small(norm)
        for last in (True, False):
            if not plan_forward(*norm.sizes, last).fits:
                yield from split(replace(norm, last=last))


_POINTERS = ("means", "rstds", "sums_a", "sums_b", "sums_dx", "statistics", "partial", "slopes")


def _pieces(norm: Norm, kernel: Any, constants: dict[str, Any]) -> tuple[Any, Any]:
    """Signature and constants of a kernel, None for the inputs that the norm has not."""
    types = dict.fromkeys(("x", "y", "dx", "dy", "shift_in", "scale", "shift"), norm.dtype)
    types |= dict.fromkeys(("weight", "bias", "offsets", *_POINTERS), "fp32")
    types |= {f"d{name}": types[name] for name in ("weight", "bias", "shift_in", "scale", "shift")}
    types["dfork"] = norm.dtype
    absent = {name for name in ("shift_in", "scale", "shift") if name not in norm.inputs}
    if "shift_in" in absent:
        absent.add("sums_dx")
    absent |= {f"d{name}" for name in absent}
    if not norm.fork:
        absent.add("dfork")
    groups, size, pixels = norm.sizes
    known = {"GROUPS": groups, "CG": size, "HW": pixels, "C": norm.channels, "LAST": norm.last}
    known |= {
        "ACTIVATION": norm.activation or ("silu" if norm.silu else "none"),
        **constants,
        **dict.fromkeys(absent),
    }
    known = {name: value for name, value in known.items() if name in kernel.arg_names}
    return signature_of(kernel, types, known), known


def _itemsize(norm: Norm) -> int:
    return 2 if norm.dtype == "bf16" else 4


def _whole(norm: Norm, backward: bool) -> Variant:
    plan = (plan_backward if backward else plan_forward)(*norm.sizes, norm.last)
    kernel = kernels.backward_kernel if backward else kernels.forward_kernel
    constants = {k: v for k, v in plan.sizes.items() if k.isupper()}
    signature, constants = _pieces(norm, kernel, constants)
    words = plan.block_c * plan.block_p * _itemsize(norm) // (16 * 32 * plan.num_warps)
    return Variant(
        kernel,
        "group_norm_backward" if backward else "group_norm",
        norm.name,
        signature,
        constants,
        plan.num_warps,
        wide=max(1, words) * (2 if backward else 1),
        tiles=-(-norm.sizes[1] * plan.together // plan.block_c) * -(-norm.sizes[2] // plan.block_p),
        options={k: v for k, v in plan.sizes.items() if k == "maxnreg"},
    )


def small(norm: Norm, images: int = 128) -> Variant:
    """The kernel of the small gradients."""
    block_c, block_n, warps = plan_small(images)
    constants = {"BLOCK_C": block_c, "BLOCK_N": block_n}
    pieces = _pieces(norm, split_form.small_kernel, constants)
    return Variant(split_form.small_kernel, "group_norm_small", norm.name, *pieces, warps, 1)


def split(norm: Norm) -> Iterator[Variant]:
    """The kernels of the split form; those that combine read a few small rows: nothing is wide."""
    _, size, pixels = norm.sizes
    tile, chunk = plan_split(norm.channels, pixels, norm.last), chunk_pixels(pixels)
    statistics = plan_statistics(norm.channels, pixels)
    blocks = -(-pixels // tile.block_p)
    group = 1 << (size - 1).bit_length()
    chunks = min(most_blocks(size), 1 << (chunk_count(pixels) - 1).bit_length())
    combine = {"BLOCK_C": group, "BLOCK_J": chunks}
    blocks = blocks if blocks <= most_blocks(size) else 1
    backward = {"BLOCK_C": group, "BLOCK_J": 1 << (blocks - 1).bit_length(), "BLOCKS": blocks}
    for kernel, constants, warps, wide in (
        (split_form.statistics_kernel, statistics.sizes, statistics.num_warps, 1),
        (split_form.combine_kernel, {"CHUNK": chunk, **combine}, 4, 0),
        (split_form.apply_kernel, tile.sizes, tile.num_warps, 1),
        (split_form.sums_kernel, tile.sizes, tile.num_warps, 2),
        (split_form.combine_backward_kernel, backward, 4, 0),
        (split_form.apply_backward_kernel, tile.sizes, tile.num_warps, 2),
    ):
        constants = {name: value for name, value in constants.items() if name.isupper()}
        name = f"{norm.op}_" + kernel.fn.__name__.removesuffix("_kernel")
        yield Variant(kernel, name, norm.name, *_pieces(norm, kernel, constants), warps, wide)
