"""The launches of `group_norm`: which kernels run, by which plan, for one call of an op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fasttrain_kernels import _group_norm_kernels as kernels
from fasttrain_kernels import _group_norm_split as split_form
from fasttrain_kernels._group_norm_plans import (
    most_blocks,
    plan_backward,
    plan_forward,
    plan_small,
    plan_split,
    plan_statistics,
    splits,
)
from fasttrain_kernels._tiles import power_of_2
from fasttrain_kernels.dispatch import in_channels_last, launch
from fasttrain_kernels.statistics import chunk_count, chunk_pixels, statistics_shape

__all__ = [
    "allocate",
    "allocate_gradients",
    "backward",
    "chunk_statistics",
    "forward",
    "small_gradients_kernel",
]

NAMES = ("x", "weight", "bias", "shift_in", "scale", "shift")


def _call(inputs: Sequence[Tensor | None]) -> dict[str, Any]:
    """Arguments that all kernels take: the inputs, and strides of the rows of samples."""
    named: dict[str, Any] = dict(zip(NAMES, inputs, strict=True))
    for name in NAMES[3:]:
        rows = named[name]
        named[f"{name}_stride"] = 0 if rows is None else rows.stride(0)
    return named


def allocate(x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor, Tensor]:
    groups = inputs[5]
    means = torch.empty(x.shape[0], groups, device=x.device, dtype=torch.float32)
    return torch.empty_like(x), means, torch.empty_like(means)


def forward(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shift_in: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    groups: int,
    eps: float,
    activation: str,
    statistics: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """y, and the float32 mean and rstd [N, groups] that the backward reads."""
    inputs = (x, weight, bias, shift_in, scale, shift)
    y, means, rstds = allocate(*inputs, groups)
    if x.numel() == 0:
        return y, means, rstds
    (samples, channels), pixels, last = x.shape[:2], x[0, 0].numel(), in_channels_last(x)
    sizes: dict[str, Any] = {"GROUPS": groups, "CG": channels // groups, "HW": pixels}
    how: dict[str, Any] = {**sizes, "LAST": last, "ACTIVATION": activation}
    named: dict[str, Any] = {**_call(inputs), "means": means, "rstds": rstds}
    plan = plan_forward(groups, channels // groups, pixels, last)
    if not splits(samples, groups, plan, statistics is not None):
        grid = (samples * groups // plan.together,)
        launch(kernels.forward_kernel, grid, **named, y=y, eps=eps, **how, **plan.sizes)
        return y, means, rstds
    launch(
        split_form.combine_kernel, (samples * groups,),
        statistics=chunk_statistics(x) if statistics is None else statistics,
        shift_in=shift_in, means=means, rstds=rstds, shift_in_stride=named["shift_in_stride"],
        eps=eps, **sizes, CHUNK=chunk_pixels(pixels), BLOCK_C=power_of_2(channels // groups),
        BLOCK_J=min(most_blocks(channels // groups), power_of_2(chunk_count(pixels))), num_warps=4,
    )  # fmt: skip
    tile = plan_split(channels, pixels, last)
    launch(split_form.apply_kernel, tile.grid(samples, channels, pixels), **named, y=y, **how,
           **tile.sizes)  # fmt: skip
    return y, means, rstds


def chunk_statistics(x: Tensor) -> Tensor:
    """Partial statistics of x by a kernel."""
    out = torch.empty(statistics_shape(x), device=x.device, dtype=torch.float32)
    (samples, channels), pixels = x.shape[:2], x[0, 0].numel()
    tile = plan_statistics(channels, pixels)
    launch(
        split_form.statistics_kernel, tile.grid(samples, channels, pixels),
        x=x, statistics=out, C=channels, HW=pixels, LAST=in_channels_last(x), **tile.sizes,
    )  # fmt: skip
    return out


def allocate_gradients(dy: Tensor, x: Tensor, *inputs: Any) -> tuple[Tensor, Tensor]:
    need_dx, need_sums = inputs[-2:]
    parts = (2 if inputs[2] is None else 3) if need_sums else 0
    sums = torch.empty(parts, *x.shape[:2], device=x.device, dtype=torch.float32)
    return torch.empty_like(x) if need_dx else torch.empty(0, device=x.device, dtype=x.dtype), sums


def backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    shift_in: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    means: Tensor,
    rstds: Tensor,
    dfork: Tensor | None,
    activation: str,
    need_dx: bool,
    need_sums: bool,
) -> tuple[Tensor, Tensor]:
    """dx (empty unless needed) and the sums A, B and, with shift_in, dx: float32 [2 or 3, N, C].
    dfork is added to dx after its sums."""
    inputs = (x, weight, bias, shift_in, scale, shift)
    dx, sums = allocate_gradients(dy, *inputs, need_dx, need_sums)
    if x.numel() == 0:
        return dx, sums.zero_()
    (samples, channels), groups = x.shape[:2], means.shape[1]
    pixels, last = x[0, 0].numel(), in_channels_last(x)
    sizes: dict[str, Any] = {"GROUPS": groups, "CG": channels // groups, "HW": pixels}
    how: dict[str, Any] = {**sizes, "LAST": last, "ACTIVATION": activation}
    named: dict[str, Any] = {"dy": dy, **_call(inputs), "means": means, "rstds": rstds}
    results: dict[str, Any] = {"dfork": dfork, "dx": dx if need_dx else None}
    names = ("sums_a", "sums_b", "sums_dx")
    sums_of: dict[str, Any] = dict(zip(names, (*sums.unbind(0), None, None, None), strict=False))
    plan = plan_backward(groups, channels // groups, pixels, last)
    if not splits(samples, groups, plan):
        whole = (samples * groups // plan.together,)
        launch(kernels.backward_kernel, whole, **named, **results, **sums_of, **how, **plan.sizes)
        return dx, sums
    tile = plan_split(channels, pixels, last)
    grid, blocks = tile.grid(samples, channels, pixels), -(-pixels // tile.block_p)
    partial = torch.empty(samples, blocks, 3, channels, device=x.device, dtype=torch.float32)
    slopes, offsets = torch.empty_like(means), torch.empty_like(means)
    launch(split_form.sums_kernel, grid, **named, partial=partial, **how, **tile.sizes)
    if blocks > most_blocks(channels // groups):
        partial, blocks = partial.sum(1, keepdim=True), 1
    launch(
        split_form.combine_backward_kernel, (samples * groups,),
        partial=partial, weight=weight, scale=scale, rstds=rstds, slopes=slopes, offsets=offsets,
        **sums_of, scale_stride=named["scale_stride"], **sizes, BLOCKS=blocks,
        BLOCK_C=power_of_2(channels // groups), BLOCK_J=power_of_2(blocks), num_warps=4,
    )  # fmt: skip
    if need_dx:
        launch(
            split_form.apply_backward_kernel, grid, **named, slopes=slopes, offsets=offsets,
            **results, **how, **tile.sizes,
        )  # fmt: skip
    return dx, sums


def small_gradients_kernel(
    sums: Tensor, inputs: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor | None]:
    """`small_gradients` in one launch."""
    grads: dict[str, Any] = {}
    for name, t, need in zip(NAMES[1:], inputs[1:], needs[1:], strict=True):
        grads[f"d{name}"] = None
        if t is not None and need:
            grads[f"d{name}"] = torch.empty(t.shape, device=t.device, dtype=t.dtype)
    _, weight, bias, _, scale, _ = inputs
    (samples, channels), (block_c, block_n, warps) = sums.shape[1:], plan_small(sums.shape[1])
    launch(
        split_form.small_kernel, (-(-channels // block_c),),
        sums_a=sums[0], sums_b=sums[1], sums_dx=sums[2] if len(sums) > 2 else None,
        weight=weight, bias=bias, scale=scale, **grads,
        scale_stride=0 if scale is None else scale.stride(0), samples=samples,
        C=channels, BLOCK_C=block_c, BLOCK_N=block_n, num_warps=warps,
    )  # fmt: skip
    return list(grads.values())
