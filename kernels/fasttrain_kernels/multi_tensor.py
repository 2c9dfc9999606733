"""Hundreds of small tensors in a few launches: the optimizer's side of an iteration.

What trains in a partly frozen U-Net is hundreds of norms, biases and small matrices. A Python loop
over them launches a kernel each, and the launches take longer than the work. torch's foreach
kernels take lists; Adam has such a form of its own (`fused=True`). Lists of several dtypes would
fall back to a loop inside torch, so they are split by dtype here.

    lerp_(averages, parameters, 1 - keep)
    ok = all_finite(gradients)             # stays on the device: nobody waits for it
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["all_finite", "lerp_"]


@torch.no_grad()
def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether every element of every tensor is finite, as a bool tensor [] on their device.

    tensors: any shapes and real dtypes, on one device; integers are finite, and so is nothing at
    all. Waits for no result. Largest magnitudes are taken, in each dtype itself: unlike a sum they
    cannot overflow, and they are NaN or infinite exactly where an element is.
    """
    groups: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point() and tensor.numel():  # nothing has no largest
            groups.setdefault(tensor.dtype, []).append(tensor)
    if not groups:
        return torch.ones((), dtype=torch.bool, device=tensors[0].device if tensors else None)
    largest = [torch._foreach_norm(group, ord=float("inf")) for group in groups.values()]
    return torch.stack([torch.stack(group).isfinite().all() for group in largest]).all()


@torch.no_grad()
def lerp_(targets: Sequence[Tensor], sources: Sequence[Tensor], weight: float) -> None:
    """`target += weight * (source - target)` for every pair, in place.

    Raises ValueError, before anything is written, when there are not as many targets as sources or
    a pair differs in shape or dtype: broadcasting would hide a wrong list.
    """
    if len(targets) != len(sources):
        raise ValueError(f"{len(targets)} targets but {len(sources)} sources")
    groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
    for i, (target, source) in enumerate(zip(targets, sources, strict=True)):
        if target.shape != source.shape or target.dtype != source.dtype:
            raise ValueError(
                f"target {i} is {target.dtype} {list(target.shape)}, "
                f"its source {source.dtype} {list(source.shape)}"
            )
        own_targets, own_sources = groups.setdefault(target.dtype, ([], []))
        own_targets.append(target)
        own_sources.append(source)
    for own_targets, own_sources in groups.values():
        torch._foreach_lerp_(own_targets, own_sources, weight)
