"""Discrete noise schedules: s(t) = sigma_t / alpha_t of t = 0 ... T - 1, and back.

    levels = discrete_levels("linear", steps=1000, beta_start=1e-4, beta_end=0.02)
    time_of(sigma, levels)            # between two steps by interpolation in log s

Schedules: linear betas of DDPM (arXiv 2006.11239), linear in their square roots of
latent-diffusion (2112.10752), cosine of iDDPM (2102.09672), and any of them rescaled so that the
last step has no signal (2305.08891). All in float64 on the CPU: at the noisy end of the cosine
schedule float32 is off by a percent.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fasttrain.settings.prediction import Betas

__all__ = ["END", "discrete_levels", "iddpm_levels", "time_of"]

END = 1e8
"""The noise level that stands for an infinite one: in float32 nothing changes beyond."""
_SNAP = 1e-3
"""A time this near to a step is that step: they are all that such a network has seen."""
_F64 = {"dtype": torch.float64, "device": "cpu"}  # networks are described on the meta device


def discrete_levels(
    betas: Betas, *, steps: int, beta_start: float, beta_end: float, zero_snr: bool = False
) -> Tensor:
    """[steps] float64, rising; `END` where there is no signal."""
    values = _betas(betas, steps, beta_start, beta_end)
    signal = (1 - values).cumprod(0).sqrt()  # alpha_t
    if zero_snr:
        signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
    levels = (1 / signal.square() - 1).sqrt()
    return levels.clamp(max=END)


def _betas(betas: Betas, steps: int, start: float, end: float) -> Tensor:
    if betas == "linear":
        return torch.linspace(start, end, steps, **_F64)  # type: ignore[call-overload,no-any-return]
    if betas == "scaled_linear":
        line: Tensor = torch.linspace(math.sqrt(start), math.sqrt(end), steps, **_F64)  # type: ignore[call-overload]
        return line.square()
    if betas == "sigmoid":
        line = torch.linspace(-6, 6, steps, **_F64)  # type: ignore[call-overload]
        return line.sigmoid() * (end - start) + start
    place: Tensor = torch.arange(steps + 1, **_F64) / steps  # type: ignore[call-overload]
    signal = ((place + 0.008) / 1.008 * math.pi / 2).cos().square()
    return (1 - signal[1:] / signal[:-1]).clamp(max=0.999)


def iddpm_levels(steps: int, c_1: float = 0.001, c_2: float = 0.008) -> Tensor:
    """[steps + 1] float64, falling to 0: the levels of EDM's wrapper of iDDPM (arXiv 2206.00364,
    table 1), u_(j-1) = sqrt((u_j^2 + 1) / max(a(j-1) / a(j), C_1) - 1), a(j) = sin^2(pi/2 j / (M
    (C_2 + 1)))."""

    def a(j: int) -> float:
        return math.sin(0.5 * math.pi * j / steps / (c_2 + 1)) ** 2

    levels = [0.0]
    for j in range(steps, 0, -1):
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / max(a(j - 1) / a(j), c_1) - 1))
    return torch.tensor(levels[::-1], **_F64)  # type: ignore[call-overload,no-any-return]


def time_of(sigma: Tensor, levels: Tensor) -> Tensor:
    """The time of each noise level, float64 in [0, T - 1]: interpolated in log s between steps, a
    step itself where it is nearer than a thousandth. Towards a last step without signal, the time
    goes as 1 / s."""
    levels = levels.to(sigma.device)
    s = sigma.to(torch.float64).clamp(levels[0], levels[-1])
    above = torch.searchsorted(levels, s.contiguous()).clamp(1, len(levels) - 1)
    low, high = levels[above - 1], levels[above]
    share = (s / low).log() / (high / low).log()
    share = torch.where(high >= END, (1 - low / s) / (1 - low / END), share)
    time = (above - 1) + share
    nearest = time.round()
    return torch.where((time - nearest).abs() < _SNAP, nearest, time)
