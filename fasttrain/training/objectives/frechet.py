"""The Frechet distance of features as an objective (FD-loss, arXiv 2604.28190): no discriminator,
and of the real images only their mean and covariance. For judges k with features phi_k,

    L = sum_k FD_k / (stopgrad(FD_k) + eps),
    FD = |m - m_r|^2 + tr C + tr C_r - 2 tr (C_r^1/2 C C_r^1/2)^1/2,   C = E[phi phi^T] - m m^T.

One batch is too small for a covariance, so the generated images' moments are an exponential
average, with a gradient through the current batch alone. The distance is a function of two moments
of the whole batch, so its gradient is taken there, once, and each micro-batch adds the part that is
linear in it:

    dL = w sum_i (g . phi_i + phi_i^T G phi_i) / N,     g = dL/dm, G = dL/dE[phi phi^T],

w: weight of the batch in the average. So world size and micro-batch change nothing. All of it is in
float64: moments, roots and gradients.

Moments by class are those of features beside the class as one-hot numbers of length c, phi' = (phi,
c y): the covariance of both holds each class's mean (the Frechet joint distance, DeVries et al.,
arXiv 1907.08175, whose embedding of the condition is here the condition itself).

Use:

    moments.update(batch_mean, batch_second, images=64)
    slopes = frechet_slopes(moments, real)
    loss = linear_part(features, slopes)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "Real",
    "RunningMoments",
    "Slopes",
    "beside_classes",
    "frechet_slopes",
    "linear_part",
    "trace_of_root",
]

EPS = 1e-6
"""Added to the distance that a judge's loss is divided by."""
FLOOR = 1e-8
"""Eigenvalues below this fraction of the largest one are rounding errors: their roots have no
gradient, which would be without bounds at 0."""


class TraceOfRoot(torch.autograd.Function):
    """tr A^1/2 = sum sqrt(lambda); its derivative is A^-1/2 / 2 on the range of A."""

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        kept = values > FLOOR * values[-1].clamp(min=0)
        roots = values.clamp(min=0).sqrt() * kept
        inverse = torch.where(kept, 1 / roots, 0.0)
        ctx.save_for_backward((vectors * inverse) @ vectors.T)
        return roots.sum()

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> Tensor:
        (inverse_root,) = ctx.saved_tensors
        return slope * inverse_root / 2


def trace_of_root(matrix: Tensor) -> Tensor:
    """Trace of the root of a symmetric positive semidefinite [F, F] float64 matrix, a scalar;
    differentiable once."""
    root: Tensor = TraceOfRoot.apply(matrix)
    return root


class Real(NamedTuple):
    """Moments of the real images' features: mean [F], covariance's trace and root [F, F]."""

    mean: Tensor
    trace: Tensor
    root: Tensor

    @classmethod
    def of(cls, mean: Tensor, covariance: Tensor) -> Real:
        """From mean [F] and covariance [F, F]; all of it in float64."""
        mean, covariance = mean.double(), covariance.double()
        values, vectors = torch.linalg.eigh(covariance)
        root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
        return cls(mean, covariance.trace(), root)


def beside_classes(features: Tensor, labels: Tensor | None, length: float) -> Tensor:
    """Features [n, F] and one-hot labels [n, C] of that length, [n, F + C]; 0: features alone."""
    if labels is None or not length:
        return features
    return torch.cat([features, length * labels.to(features.dtype)], 1)


class Slopes(NamedTuple):
    """The distance of a judge, and the derivatives of its loss in the batch's mean [F] and second
    moment [F, F]."""

    distance: Tensor
    mean: Tensor
    second: Tensor


class RunningMoments:
    """Exponential average of the mean and the second moment of features; the plain mean of all
    images until they are as many as the average remembers.

    half_life: images after which a batch has half of its weight.

    Attributes:
        weight: of the last batch in the average.
    """

    def __init__(self, width: int, half_life: float, device: torch.device) -> None:
        self.half_life = half_life
        self.mean = torch.zeros(width, dtype=torch.float64, device=device)
        self.second = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.images = torch.zeros((), dtype=torch.int64)
        self.weight = 1.0

    def update(self, mean: Tensor, second: Tensor, images: int) -> None:
        """Include a batch of `images` images. One that is not finite is left out: no step will be
        applied for it."""
        if not (mean.isfinite().all() and second.isfinite().all()):
            return
        self.images += images
        keep = 0.5 ** (images / self.half_life)
        self.weight = max(1 - keep, images / int(self.images))
        self.mean.lerp_(mean, self.weight)
        self.second.lerp_(second, self.weight)

    def state_dict(self, prefix: str = "") -> dict[str, Tensor]:
        return {f"{prefix}{name}": getattr(self, name) for name in ("mean", "second", "images")}

    def load_state_dict(self, state: Mapping[str, Tensor], prefix: str = "") -> None:
        for name, tensor in self.state_dict().items():
            tensor.copy_(state[f"{prefix}{name}"])


def frechet_slopes(moments: RunningMoments, real: Real) -> Slopes:
    """The distance of the averaged moments from the real ones, and the derivatives of
    FD / (stopgrad(FD) + eps) in the last batch's moments."""
    mean, second = (x.detach().clone().requires_grad_() for x in (moments.mean, moments.second))
    covariance = second - torch.outer(mean, mean)
    inner = real.root @ covariance @ real.root
    cross = trace_of_root((inner + inner.T) / 2)
    distance = (mean - real.mean).square().sum() + covariance.trace() + real.trace - 2 * cross
    slopes = torch.autograd.grad(distance, [mean, second])
    scale = moments.weight / (distance.detach().clamp(min=0) + EPS)
    return Slopes(distance.detach(), scale * slopes[0], scale * slopes[1])


def linear_part(features: Tensor, slopes: Slopes) -> Tensor:
    """Mean over the images of g . phi + phi^T G phi, a float64 scalar: its gradient is that of the
    loss. features [n, F], differentiable."""
    x = features.double()
    return (x @ slopes.mean + ((x @ slopes.second) * x).sum(1)).mean()
