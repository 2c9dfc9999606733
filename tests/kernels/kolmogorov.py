"""Kolmogorov's test of a distribution, in torch: the machine with the GPU has no scipy."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def p_value(x: Tensor, distribution: str) -> float:
    """Of float64 [N] being drawn from `norm` or `uniform` (0 to 1); asymptotic, for N > 100.

    D sqrt(N) of Kolmogorov's distribution: P(K > k) = 2 sum (-1)^(j - 1) exp(-2 j^2 k^2).
    """
    ordered = x.flatten().double().sort().values
    expected = torch.special.ndtr(ordered) if distribution == "norm" else ordered.clamp(0, 1)
    n = len(ordered)
    steps = torch.arange(n + 1, dtype=torch.float64, device=x.device) / n
    apart = torch.maximum((steps[1:] - expected).max(), (expected - steps[:-1]).max())
    k = float(apart) * math.sqrt(n)
    terms = ((-1) ** (j - 1) * math.exp(-2 * j * j * k * k) for j in range(1, 101))
    return min(1.0, 2 * math.fsum(terms)) if k > 0.2 else 1.0
