"""Distances between two sets of features, those of generated and of real images.

Frechet distance of the sets' Gaussians (Heusel et al., arXiv 1706.08500),

    |mu_1 - mu_2|^2 + tr C_1 + tr C_2 - 2 tr (C_1^1/2 C_2 C_1^1/2)^1/2.

With any factors C_i = A_i^T A_i the last trace is the sum of the singular values of A_1 A_2^T.
This needs no matrix root, so covariances of low rank are exact: with fewer images than features the
centred features themselves are the factors. Where only means and covariances are known, as in EDM's
references, the factors come from eigenvectors (`frechet_from_statistics`).

In all 1280 dimensions a set of some hundred images has a covariance of low rank and the distance
(`fd_full`) a large floor; on the leading principal components of the real set (`fd`) it does not.
The kernel distance (Binkowski et al., arXiv 1801.01401) has no bias at any size of the sets:

    MMD^2 with k(x, y) = (x.y / F + 1)^3, without the pairs of an image with itself.

Use:

    floor = evaluate_features(real[:n], real[n : 2 * n])     # that of a perfect generator
    result = evaluate_features(real[:n], fake)               # {"fd", "fd_full", "kd", "n"}
    fid = frechet_from_statistics(mu_1, sigma_1, mu_2, sigma_2)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fasttrain.system.errors import UserError

__all__ = [
    "evaluate_features",
    "frechet_distance",
    "frechet_distance_pca",
    "frechet_from_statistics",
    "kernel_distance",
    "leading_components",
]

COMPONENTS = 64


def frechet_distance(real: Tensor, fake: Tensor) -> float:
    """Frechet distance of features [N, F] and [M, F], in float64, on the device of `real`.

    Raises UserError for fewer than two rows, different widths and values that are not finite.
    """
    real, fake = checked(real, fake)
    return frechet(real, fake)


def frechet_distance_pca(real: Tensor, fake: Tensor, components: int = COMPONENTS) -> float:
    """Frechet distance on the `components` leading principal components of `real`.

    Raises UserError as `frechet_distance`, and unless 0 < components < N and components <= F.
    """
    real, fake = checked(real, fake)
    count, width = real.shape
    if not 0 < components <= min(count - 1, width):
        raise UserError(
            f"components={components} of {count} real images with {width} features each: "
            f"set it to {min(count - 1, width)} or fewer, and at least 1"
        )
    centre = real.mean(0)
    centred = real - centre
    axes = leading_components(centred.T @ centred, components)
    return frechet(centred @ axes, (fake - centre) @ axes)


def kernel_distance(real: Tensor, fake: Tensor, block: int = 1024) -> float:
    """Unbiased squared MMD of features [N, F] and [M, F] with the cubic polynomial kernel.

    May be slightly negative for sets of one distribution. Computed in float64 over all pairs, in
    blocks of `block` rows, so memory grows with N + M, time with their square.

    Raises UserError as `frechet_distance`.
    """
    real, fake = checked(real, fake)
    n, m = len(real), len(fake)
    within_real = (kernel_sum(real, real, block) - kernel_diagonal(real)) / (n * (n - 1))
    within_fake = (kernel_sum(fake, fake, block) - kernel_diagonal(fake)) / (m * (m - 1))
    return float(within_real + within_fake - 2 * kernel_sum(real, fake, block) / (n * m))


def frechet_from_statistics(mu_1: Tensor, sigma_1: Tensor, mu_2: Tensor, sigma_2: Tensor) -> float:
    """Frechet distance of Gaussians with means [F] and covariances [F, F], in float64."""
    first, second = symmetric_factor(sigma_1.double()), symmetric_factor(sigma_2.double())
    return gaussian_distance(mu_1.double(), first, mu_2.double(), second)


def leading_components(sigma: Tensor, components: int) -> Tensor:
    """The `components` leading principal axes of a covariance, orthonormal columns [F, k]."""
    return torch.linalg.eigh(sigma).eigenvectors[:, -components:]


def evaluate_features(
    real: Tensor, fake: Tensor, components: int | None = COMPONENTS
) -> dict[str, float | int]:
    """{"fd", "fd_full", "kd", "n"} of two sets of n features each; `fd` is in all dimensions, too,
    when `components` is None.

    Raises UserError for sets of different sizes, because all of these depend on the size, and as
    `frechet_distance_pca`.
    """
    if len(real) != len(fake):
        raise UserError(
            f"{len(real)} real and {len(fake)} generated images: distances compare at equal "
            f"numbers only, use {min(len(real), len(fake))} of both"
        )
    full = frechet_distance(real, fake)
    return {
        "fd": full if components is None else frechet_distance_pca(real, fake, components),
        "fd_full": full,
        "kd": kernel_distance(real, fake),
        "n": len(real),
    }


def checked(real: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
    """Both in float64 on the device of `real`. Raises UserError for invalid features."""
    for name, features in (("real", real), ("generated", fake)):
        if features.ndim != 2 or len(features) < 2:
            raise UserError(
                f"{name} features of shape {tuple(features.shape)}: a distance needs two images "
                f"or more, one row of features each"
            )
        if not torch.isfinite(features).all():
            bad = int((~torch.isfinite(features).all(1)).sum())
            raise UserError(
                f"the {name} features of {bad} of {len(features)} images are not finite: "
                f"check the images for NaN"
            )
    if real.shape[1] != fake.shape[1]:
        raise UserError(
            f"real features have {real.shape[1]} columns and generated ones {fake.shape[1]}: "
            f"compute both with the same extractor"
        )
    return real.detach().double(), fake.detach().to(real.device).double()


def frechet(real: Tensor, fake: Tensor) -> float:
    """The Frechet distance of checked float64 features."""
    first, second = covariance_factor(real), covariance_factor(fake)
    return gaussian_distance(real.mean(0), first, fake.mean(0), second)


def gaussian_distance(mu_1: Tensor, first: Tensor, mu_2: Tensor, second: Tensor) -> float:
    """The Frechet distance of Gaussians with float64 means [F] and factors [r, F] of their
    covariances, C = A^T A."""
    mean = (mu_1 - mu_2).square().sum()
    cross = torch.linalg.svdvals(first @ second.T).sum()
    trace = first.square().sum() + second.square().sum()  # tr A^T A = |A|^2
    return max(0.0, float(mean + trace - 2 * cross))


def covariance_factor(features: Tensor) -> Tensor:
    """A [min(N, F), F] with A^T A the unbiased covariance of features [N, F]."""
    count, width = features.shape
    centred = (features - features.mean(0)) / (count - 1) ** 0.5
    if count <= width:
        return centred
    values, vectors = torch.linalg.eigh(centred.T @ centred)
    return values.clamp(min=0).sqrt()[:, None] * vectors.T


def symmetric_factor(sigma: Tensor) -> Tensor:
    """A [r, F] with A^T A = sigma, a covariance of rank r: without the eigenvalues that are only
    rounding errors, because their roots would add up."""
    values, vectors = torch.linalg.eigh(sigma)
    rounding = len(values) * torch.finfo(values.dtype).eps * values[-1]
    kept = values > rounding.clamp(min=0)
    return values[kept].sqrt()[:, None] * vectors.T[kept]


def kernel_sum(x: Tensor, y: Tensor, block: int) -> Tensor:
    """The sum of k over all pairs of rows, a float64 scalar."""
    total = x.new_zeros(())
    for rows in x.split(block):
        for columns in y.split(block):
            total += (rows @ columns.T / x.shape[1] + 1).pow(3).sum()
    return total


def kernel_diagonal(x: Tensor) -> Tensor:
    """The sum of k over the pairs of each row with itself, a float64 scalar."""
    return (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
