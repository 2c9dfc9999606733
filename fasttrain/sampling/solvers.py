"""Samplers: one step, two steps, and EDM's Heun solver for the diffusion model itself.

All accept unit-variance latents z [N, C, H, W] and scale them to their first noise level.

- `one_step`:  G(sigma z; sigma), sigma = 80.
- `two_step`:  x0 = G(x_T; sigma), then along the straight ODE line through x_T and x0 to
  sigma_mid:  x_mid = x0 + (sigma_mid / sigma) (x_T - x0),  and  G(x_mid; sigma_mid).
- `heun_sampler`: Karras et al., "Elucidating the Design Space of Diffusion-Based Generative
  Models" (arXiv 2206.00364), algorithm 2, on the grid
  t_i = (sigma_max^(1/rho) + i / (N - 1) (sigma_min^(1/rho) - sigma_max^(1/rho)))^rho, t_N = 0;
  algorithm 1 where s_churn = 0.

`fasttrain.sampling.sampler` selects the one for a model.

Use: `images = one_step(generator, latents, class_labels)`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Protocol

import torch
from torch import Tensor

from fasttrain.settings.base import GradientThrough

__all__ = [
    "Denoiser",
    "heun_sampler",
    "noise_levels",
    "one_step",
    "two_step",
]


class Denoiser(Protocol):
    """Interface that the Heun sampler needs; every `fasttrain.models.networks` preconditioner has
    it."""

    sigma_min: float
    sigma_max: float

    def round_sigma(self, sigma: Tensor | float) -> Tensor: ...

    def __call__(
        self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None
    ) -> Tensor: ...


def one_step(
    generator: Callable[..., Tensor],
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    sigma: float = 80.0,
) -> Tensor:
    """Images of one evaluation, differentiable in the generator and the latents.

    Args:
        generator: called `generator(x, sigma, class_labels)`; a network or an engine around one.
        latents: [N, C, H, W], unit variance; float64 latents are scaled in float64.
    Returns:
        [N, C, H, W] float32, nominally in [-1, 1].
    """
    return generator(latents * sigma, sigma, class_labels)


def two_step(
    generator: Callable[..., Tensor],
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    sigma: float = 80.0,
    sigma_mid: float = 0.8,
    through: GradientThrough = "both",
) -> Tensor:
    """Images of two evaluations; arguments as `one_step`.

    Args:
        through: evaluations that gradients flow through. With the last one only, the backward pass
            needs half the memory.
    Raises:
        ValueError: `sigma_mid` outside (0, sigma).
    """
    if not 0 < sigma_mid < sigma:
        raise ValueError(f"sigma_mid is {sigma_mid}: choose it between 0 and sigma = {sigma}")
    x = latents * sigma
    with torch.set_grad_enabled(torch.is_grad_enabled() and through == "both"):
        denoised = generator(x, sigma, class_labels)
    x_mid = denoised + (sigma_mid / sigma) * (x - denoised)
    return generator(x_mid, sigma_mid, class_labels)


def noise_levels(
    num_steps: int, sigma_min: float, sigma_max: float, rho: float = 7.0
) -> list[float]:
    """The grid t_0 > ... > t_{num_steps - 1} of the module docstring, without the final 0, each in
    float64. One step is `[sigma_max]`.

    Raises:
        ValueError: no step, or a range that is not 0 < sigma_min < sigma_max.
    """
    if num_steps < 1:
        raise ValueError(f"num_steps is {num_steps}: at least one step is needed")
    if not 0 < sigma_min < sigma_max:
        raise ValueError(
            f"noise levels from {sigma_min} to {sigma_max} are not an increasing range"
        )
    low, high = sigma_min ** (1 / rho), sigma_max ** (1 / rho)
    return [(high + i / max(num_steps - 1, 1) * (low - high)) ** rho for i in range(num_steps)]


@torch.no_grad()
def heun_sampler(
    net: Denoiser,
    latents: Tensor,
    class_labels: Tensor | None = None,
    *,
    num_steps: int,
    sigma_min: float = 0.002,
    sigma_max: float = 80.0,
    rho: float = 7.0,
    s_churn: float = 0.0,
    s_min: float = 0.0,
    s_max: float = math.inf,
    s_noise: float = 1.0,
    noise: Callable[[int], Tensor] | None = None,
) -> Tensor:
    """Images of `2 num_steps - 1` evaluations of a diffusion model.

    Args:
        net: the denoiser; the noise range is clamped to its own.
        latents: [N, C, H, W], unit variance.
        s_churn, s_min, s_max, s_noise: stochasticity, where it acts, and how much it inflates the
            noise that it adds.
        noise: `noise(step)` returns unit-variance [N, C, H, W] for the churn of a step; required
            when `s_churn` > 0, and called only for steps that churn.
    Returns:
        [N, C, H, W] float32, without gradient. The state is float64 between evaluations.
    Raises:
        ValueError: `s_churn` without `noise`; an empty noise range.
    """
    if s_churn > 0 and noise is None:
        raise ValueError("s_churn > 0 needs `noise`, a function of the step: pass one")
    levels = noise_levels(
        num_steps, max(sigma_min, net.sigma_min), min(sigma_max, net.sigma_max), rho
    )
    grid = [float(net.round_sigma(level)) for level in levels] + [0.0]

    def slope(x: Tensor, t: float) -> Tensor:
        return (x - net(x, t, class_labels).to(torch.float64)) / t

    x = latents.to(torch.float64) * grid[0]
    for step, (t, t_next) in enumerate(pairwise(grid)):
        t_hat = t
        if s_churn > 0 and noise is not None and s_min <= t <= s_max:
            gamma = min(s_churn / num_steps, math.sqrt(2) - 1)
            t_hat = float(net.round_sigma(t + gamma * t))
            x = x + math.sqrt(t_hat**2 - t**2) * s_noise * noise(step).to(x)
        d = slope(x, t_hat)
        x_next = x + (t_next - t_hat) * d
        if t_next > 0:  # second order, except where the slope at 0 is undefined
            x_next = x + (t_next - t_hat) * (d + slope(x_next, t_next)) / 2
        x = x_next
    return x.to(torch.float32)
