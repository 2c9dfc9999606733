"""Hundreds of small tensors in a few launches: the optimizer's side of an iteration.

What trains in a partly frozen U-Net is hundreds of norms, biases and small matrices. A Python loop
over them launches a kernel each, and the launches take longer than the work. torch's foreach
kernels take lists; Adam has such a form of its own (`fused=True`).

    lerp_(averages, parameters, 1 - keep)
    ok = all_finite(gradients)             # stays on the device: nobody waits for it
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["all_finite", "lerp_"]


def all_finite(tensors: Sequence[Tensor]) -> Tensor:
    """Whether every element of every tensor is finite, as a bool tensor [] on their device.

    tensors: any shapes and dtypes, on one device; integers are finite, and so is nothing at all.
    Waits for no result. Largest magnitudes are taken, which cannot overflow as a sum would.
    """
    floating = [t.detach() for t in tensors if t.is_floating_point() and t.numel()]
    if not floating:
        return torch.ones((), dtype=torch.bool, device=tensors[0].device if tensors else None)
    largest = torch._foreach_norm(floating, ord=float("inf"))
    return torch.stack([value.float() for value in largest]).isfinite().all()


@torch.no_grad()
def lerp_(targets: Sequence[Tensor], sources: Sequence[Tensor], weight: float) -> None:
    """`target += weight * (source - target)` for every pair, in place.

    Raises ValueError when there are not as many targets as sources.
    """
    if len(targets) != len(sources):
        raise ValueError(f"{len(targets)} targets but {len(sources)} sources")
    if targets:
        torch._foreach_lerp_(list(targets), list(sources), weight)
