"""Discrete noise schedules: s(t) = sigma_t / alpha_t of t = 0 ... T - 1, as plain numbers.

    levels = discrete_levels("linear", 1000, 1e-4, 0.02)

Schedules: linear betas of DDPM (arXiv 2006.11239), linear in their square roots of
latent-diffusion (2112.10752), cosine of iDDPM (2102.09672), a sigmoid (2203.02923), and any of
them rescaled so that the last step has no signal (2305.08891). In float64: at the noisy end of the
cosine schedule float32 is off by a percent.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Literal

__all__ = ["END", "Betas", "discrete_levels", "iddpm_levels", "vp_sigma"]

Betas = Literal["linear", "scaled_linear", "cosine", "sigmoid"]

END = 1e8
"""The noise level that stands for an infinite one: in float32 nothing changes beyond."""


@lru_cache(maxsize=16)
def discrete_levels(
    betas: Betas, steps: int, beta_start: float, beta_end: float, zero_snr: bool = False
) -> tuple[float, ...]:
    """The levels, rising; `END` where there is no signal."""
    signal, product = [], 1.0  # alpha_t
    for beta in _betas(betas, steps, beta_start, beta_end):
        product *= 1 - beta
        signal.append(math.sqrt(product))
    if zero_snr:
        first, last = signal[0], signal[-1]
        signal = [(value - last) * (first / (first - last)) for value in signal]
    return tuple(min(math.sqrt(1 / a**2 - 1), END) if a > 1 / END else END for a in signal)


def _betas(betas: Betas, steps: int, start: float, end: float) -> list[float]:
    if betas == "cosine":
        line = [math.cos((i / steps + 0.008) / 1.008 * math.pi / 2) ** 2 for i in range(steps + 1)]
        return [min(1 - line[i + 1] / line[i], 0.999) for i in range(steps)]
    share = [i / max(steps - 1, 1) for i in range(steps)]
    if betas == "scaled_linear":
        low, high = math.sqrt(start), math.sqrt(end)
        return [(low + (high - low) * x) ** 2 for x in share]
    if betas == "sigmoid":
        return [(end - start) / (1 + math.exp(6 - 12 * x)) + start for x in share]
    return [start + (end - start) * x for x in share]


@lru_cache(maxsize=4)
def iddpm_levels(steps: int, c_1: float = 0.001, c_2: float = 0.008) -> tuple[float, ...]:
    """`steps + 1` levels, falling to 0, of EDM's wrapper of iDDPM (arXiv 2206.00364, table 1):

    u_(j-1) = sqrt((u_j^2 + 1) / max(a_(j-1) / a_j, C_1) - 1),  a_j = sin^2(pi/2 j / (M (C_2 + 1))).
    """
    a = [math.sin(0.5 * math.pi * j / steps / (c_2 + 1)) ** 2 for j in range(steps + 1)]
    levels = [0.0]
    for j in range(steps, 0, -1):
        levels.append(math.sqrt((levels[-1] ** 2 + 1) / max(a[j - 1] / a[j], c_1) - 1))
    return tuple(reversed(levels))


def vp_sigma(t: float, beta_d: float, beta_min: float) -> float:
    """The level at time t, 0 to 1, of score_sde's continuous schedule, whose betas are
    `beta_min + beta_d t`."""
    return math.sqrt(math.expm1(0.5 * beta_d * t**2 + beta_min * t))
