"""The time of a noise level on a discrete schedule.

levels = torch.tensor(settings.prediction.levels, dtype=torch.float64)
time_of(sigma, levels)            # between two steps by interpolation in log s
"""

from __future__ import annotations

import torch
from torch import Tensor

from fasttrain.settings.schedules import END

__all__ = ["nearest", "time_of"]

_SNAP = 1e-3
"""A time this near to a step is that step: they are all that such a network has seen."""


def time_of(sigma: Tensor, levels: Tensor) -> Tensor:
    """The time of each noise level, float64 in [0, T - 1]: interpolated in log s between steps, a
    step itself where it is nearer than a thousandth. Towards a last step without signal the time
    goes as 1 / s.

    sigma: any shape; levels: [T] float64, rising, on its device.
    """
    s = torch.minimum(torch.maximum(sigma.to(torch.float64), levels[0]), levels[-1])
    above = torch.searchsorted(levels, s.contiguous()).clamp(1, len(levels) - 1)
    low, high = levels[above - 1], levels[above]
    share = (s / low).log() / (high / low).log()
    share = torch.where(high >= END, (1 - low / s) / (1 - low / END), share)
    time = (above - 1) + share
    step = time.round()
    return torch.where((time - step).abs() < _SNAP, step, time)


def nearest(sigma: Tensor, levels: Tensor) -> Tensor:
    """Index of the nearest level, in sigma's shape."""
    flat = sigma.to(torch.float64).reshape(-1, 1)
    return (flat - levels).abs().argmin(dim=1).reshape(sigma.shape)
