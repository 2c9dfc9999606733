"""Distillation of a diffusion model into a student of few steps, the paper's baselines (Zheng and
Yang, ICML 2025): the student must reach in one step what two steps reach.

With the noise levels 0 = t_0 < t_1 < ... < t_N, of which t_1 ... t_N are EDM's grid, the student D
jumps from level t to level s along the line that its own estimate gives,

    J(x; t, s) = (s / t) x + (1 - s / t) D(x; t),

and has to match a target without a gradient, which goes from x = image + t n over u < t to s. A
triple t > u > s of indices of levels:

    pd      steps of 2^k levels, k > 0 uniform: s = t - 2^k, u halfway    progressive
    cd      t uniform in 2 ... N, u = t - 1, s = 0                     consistency
    ctm     t > u > s >= 1 uniform; both ends jump on to t_1           trajectories
    rcd     t = N, s uniform in 0 ... N - 2, u = s + 1                 from the last level

(Salimans and Ho, arXiv 2202.00512; Song et al., arXiv 2303.01469; Kim et al., arXiv 2310.02279.)
Where two levels are neighbours the teacher goes from one to the other by a step of Heun's method,
elsewhere the student jumps; but `ctm` goes from t to u by the teacher's steps over all levels in
between, as its paper does. With the student's jump there, which is how the D2O paper words it, a
student that is constant is right by its own account wherever no two levels are neighbours, and on
the digits it becomes one: fd 314, 315, 499, 985 after 500, 1,000, 1,500 and 2,000 images.

What is compared are clean images: where s > 0, those that the line through x and the end points at
(for the student that is D(x; t) itself), which is the same as comparing the ends with the weight
(1 - s / t)^-2.

Use:

    t, u, s = triple("pd", uniform, levels=16)
    loss = squared_error(student(x, t), target)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fasttrain.sampling.solvers import noise_levels
from fasttrain.settings.base import Distillation

__all__ = [
    "DRAWS",
    "Denoise",
    "Triple",
    "feature_distance",
    "grid",
    "heun_step",
    "implied",
    "jump",
    "squared_error",
    "triple",
]

Denoise = Callable[[Tensor, Tensor], Tensor]
"""(images [N, C, H, W], levels [N, 1, 1, 1]) -> estimates of the clean images."""

DRAWS = 3
"""Uniform draws of an image."""


class Triple(NamedTuple):
    """Indices of levels, int64 [N], t > u > s."""

    t: Tensor
    u: Tensor
    s: Tensor


def grid(levels: int, sigma_min: float, sigma_max: float) -> Tensor:
    """The noise levels [levels + 1], float32, from 0 up."""
    return torch.tensor([0.0, *reversed(noise_levels(levels, sigma_min, sigma_max))])


def triple(method: Distillation, uniform: Tensor, levels: int) -> Triple:
    """The triple of each image.

    uniform: [N, 3] in [0, 1). levels: a power of two for `pd`; at least 3 for `ctm`, 2 for others.
    """

    def draw(k: int, low: Tensor | int, high: Tensor | int) -> Tensor:
        """Uniform in low ... high."""
        low, high = (torch.as_tensor(end, device=uniform.device) for end in (low, high))
        index = low + (uniform[:, k].double() * (high - low + 1)).long()
        return index.clamp(max=high)  # float32 draws may round up to 1

    if method == "pd":
        depth = levels.bit_length() - 1
        half = 2 ** draw(0, 0, depth - 1)
        t = 2 * half * draw(1, 1, levels // (2 * half))
        return Triple(t, t - half, t - 2 * half)
    if method == "cd":
        t = draw(0, 2, levels)
        return Triple(t, t - 1, torch.zeros_like(t))
    if method == "ctm":
        t = draw(0, 3, levels)
        u = draw(1, 2, t - 1)
        return Triple(t, u, draw(2, 1, u - 1))
    s = draw(0, 0, levels - 2)
    return Triple(torch.full_like(s, levels), s + 1, s)


def jump(denoise: Denoise, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """J(x; t, s) of the module docstring; t, s: [N, 1, 1, 1], t > 0."""
    ratio = s / t
    return ratio * x + (1 - ratio) * denoise(x, t)


def heun_step(denoise: Denoise, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """A step of the ODE's second-order solver from level t to s (Karras et al., arXiv 2206.00364,
    algorithm 1); where s is 0, of first order, because the slope is not defined there."""
    slope = (x - denoise(x, t)) / t
    first = x + (s - t) * slope
    safe = torch.where(s > 0, s, t)  # not 0 / 0, of which NaN remains
    second = (first - denoise(first, safe)) / safe
    return torch.where(s > 0, x + (s - t) * (slope + second) / 2, first)


def implied(x: Tensor, end: Tensor, t: Tensor, s: Tensor) -> Tensor:
    """The clean image to which the line from x, at level t, through `end`, at s < t, leads."""
    ratio = s / t
    return (end - ratio * x) / (1 - ratio)


def squared_error(student: Tensor, target: Tensor) -> Tensor:
    """Mean over pixels of each image, [N] float32."""
    return (student.float() - target.float()).square().flatten(1).mean(1)


def feature_distance(student: Sequence[Tensor], target: Sequence[Tensor]) -> Tensor:
    """Distance of two images' feature maps [N, C_k, H_k, W_k], [N] float32: features of unit length
    at each place, their squared difference, a mean over places and over maps. LPIPS (Zhang et al.,
    arXiv 1801.03924) without its learned weights of channels."""
    squares = [
        (_unit(a) - _unit(b)).square().sum(1).flatten(1).mean(1)
        for a, b in zip(student, target, strict=True)
    ]
    return torch.stack(squares).mean(0)


def _unit(x: Tensor) -> Tensor:
    """Features with the length 1 at each place."""
    x = x.float()
    return x * (x.square().sum(1, keepdim=True) + 1e-10).rsqrt()
