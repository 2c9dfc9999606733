"""Hundreds of small tensors in a few launches: the optimizer's side of an iteration.

What trains in a partly frozen U-Net is hundreds of norms, biases and small matrices. A Python loop
over them launches a kernel each, and the launches take longer than the work. torch's foreach
kernels take lists; Adam has such a form of its own (`fused=True`). Lists of several dtypes would
fall back to a loop inside torch, so they are split by dtype here.

    lerp_(averages, parameters, 1 - keep)
    ok = all_finite(gradients)             # stays on the device, without a wait
    copies = to_host(parameters)           # waits once, not once for each
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["all_finite", "lerp_", "to_host"]

TOGETHER = 1 << 26
"""Bytes that `to_host` copies at once, and holds twice on the device and on the host meanwhile."""


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


@torch.no_grad()
def to_host(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The same values on the CPU, in the same order: `x.cpu()` of each, with one wait for the
    device for each dtype and `TOGETHER` bytes, instead of one for each tensor.

    tensors: dense, of any shapes, dtypes and devices; taken one after the other, so that a
    generator's are held in groups only. What is on the CPU is passed on as it is; a copy is
    contiguous and has memory of its own.
    """
    found: list[Tensor] = []
    waiting: dict[tuple[torch.device, torch.dtype], list[tuple[int, Tensor]]] = {}
    held = 0

    def copy() -> None:
        for group in waiting.values():
            flats = [tensor.reshape(-1) for _, tensor in group]
            together = (torch.cat(flats) if len(flats) > 1 else flats[0]).cpu()
            parts = together.split([len(flat) for flat in flats])
            for (place, tensor), flat in zip(group, parts, strict=True):
                found[place] = (flat if len(group) == 1 else flat.clone()).view(tensor.shape)
        waiting.clear()

    for place, tensor in enumerate(tensors):
        found.append(tensor)
        if tensor.device.type == "cpu":
            continue
        size = tensor.numel() * tensor.element_size()
        if held and held + size > TOGETHER:
            copy()
            held = 0
        waiting.setdefault((tensor.device, tensor.dtype), []).append((place, tensor))
        held += size
    copy()
    return found
