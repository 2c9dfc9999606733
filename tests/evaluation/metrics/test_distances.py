"""Distances against closed forms, scipy's matrix root, brute force and their invariances."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from fasttrain.evaluation import (
    evaluate_features,
    frechet_distance,
    frechet_distance_pca,
    frechet_from_statistics,
    kernel_distance,
)
from fasttrain.system.errors import UserError

Distance = Callable[[Tensor, Tensor], float]
ALL: list[Distance] = [
    frechet_distance,
    lambda real, fake: frechet_distance_pca(real, fake, components=3),
    kernel_distance,
]


def normal(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def exact(n: int, mean: Tensor, root: Tensor, seed: int = 0) -> Tensor:
    """n rows whose sample mean and unbiased covariance are exactly `mean` and root^T root."""
    x = normal(n, len(mean), seed)
    x = x - x.mean(0)
    q = torch.linalg.qr(x).Q * (n - 1) ** 0.5
    return q @ root + mean


def rotation(width: int, seed: int = 5) -> Tensor:
    return torch.linalg.qr(normal(width, width, seed)).Q


def test_gaussians_with_diagonal_covariances() -> None:
    """Closed form: |mu_1 - mu_2|^2 + sum (s_1 - s_2)^2, whatever the rotation of both."""
    first, second = torch.tensor([3.0, 1, 0.5, 0]).double(), torch.tensor([1.0, 1, 2, 0]).double()
    mean = torch.tensor([1.0, -2, 0, 3]).double()
    turn = rotation(4)
    real = exact(50, torch.zeros(4).double(), first.diag()) @ turn
    fake = exact(31, mean, second.diag(), seed=1) @ turn
    assert frechet_distance(real, fake) == pytest.approx(14 + 4 + 0 + 2.25, rel=1e-10)


def correlated_sets(n: int, m: int) -> tuple[Tensor, Tensor]:
    return normal(n, 20) @ normal(20, 20, 1), normal(m, 20, 2) @ normal(20, 20, 3) + 0.3


def from_root(real: Tensor, fake: Tensor, trace_of_root: float) -> float:
    gap = (real.mean(0) - fake.mean(0)).square().sum().item()
    return gap + np.trace(np.cov(real.T)) + np.trace(np.cov(fake.T)) - 2 * trace_of_root


def test_frechet_equals_scipys_matrix_root() -> None:
    real, fake = correlated_sets(200, 150)
    root = scipy.linalg.sqrtm(np.cov(real.T) @ np.cov(fake.T)).real
    expected = from_root(real, fake, np.trace(root))
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("n", "m"), [(200, 150), (200, 9), (9, 200), (9, 7)])
def test_frechet_equals_the_symmetric_root_at_any_rank(n: int, m: int) -> None:
    """Where scipy's root of a singular matrix is poor: with eigenvalues that are rounding errors
    set to zero."""

    def eigenvalues(matrix: Any) -> tuple[Any, Any]:
        values, vectors = np.linalg.eigh(matrix)
        return np.where(values > 1e-9 * values.max(), values, 0), vectors

    real, fake = correlated_sets(n, m)
    values, vectors = eigenvalues(np.cov(real.T))
    root = (vectors * np.sqrt(values)) @ vectors.T
    expected = from_root(real, fake, np.sqrt(eigenvalues(root @ np.cov(fake.T) @ root)[0]).sum())
    assert frechet_distance(real, fake) == pytest.approx(expected, rel=1e-9)


def test_pca_looks_at_the_leading_components_of_the_real_set_only() -> None:
    spread = torch.tensor([5.0, 4, 0.1, 0.1]).double()
    other = torch.tensor([5.0, 3, 7, 7]).double()
    turn = rotation(4)
    real = exact(40, torch.zeros(4).double(), spread.diag())
    fake = exact(40, torch.tensor([1.0, 2, 9, 9]).double(), other.diag())
    distance = frechet_distance_pca(real @ turn, fake @ turn, components=2)
    assert distance == pytest.approx(1 + 4 + 1, rel=1e-9)
    full = frechet_distance_pca(real @ turn, fake @ turn, components=4)
    assert full == pytest.approx(frechet_distance(real, fake), rel=1e-9)


def test_kernel_distance_equals_brute_force_in_any_blocks() -> None:
    real, fake = normal(13, 5), normal(9, 5, 1) + 0.5

    def k(x: Tensor, y: Tensor) -> float:
        return float((x @ y / 5 + 1) ** 3)

    within_real = [k(x, y) for i, x in enumerate(real) for j, y in enumerate(real) if i != j]
    within_fake = [k(x, y) for i, x in enumerate(fake) for j, y in enumerate(fake) if i != j]
    between = [k(x, y) for x in real for y in fake]
    expected = np.mean(within_real) + np.mean(within_fake) - 2 * np.mean(between)
    for block in (1, 4, 1024):
        assert kernel_distance(real, fake, block) == pytest.approx(expected, rel=1e-10)


def test_kernel_distance_has_no_bias() -> None:
    """Over many small draws of one distribution the mean is zero within its standard error."""
    values = torch.tensor(
        [kernel_distance(normal(8, 3, s), normal(6, 3, s + 999)) for s in range(400)]
    )
    assert values.mean().abs() < 3 * values.std() / len(values) ** 0.5
    assert (values < 0).any()


@pytest.mark.parametrize("distance", ALL)
def test_invariances(distance: Distance) -> None:
    real, fake = normal(60, 6) * torch.arange(1, 7), normal(50, 6, 1) * 2 + 0.5
    expected = distance(real, fake)
    turn = rotation(6)
    assert distance(real @ turn, fake @ turn) == pytest.approx(expected, rel=1e-8)
    order = torch.randperm(50, generator=torch.Generator().manual_seed(1))
    assert distance(real, fake[order]) == pytest.approx(expected, rel=1e-10)
    if distance is not ALL[1]:  # the components are those of the first set
        assert distance(fake, real) == pytest.approx(expected, rel=1e-8)
    assert distance(real.float(), fake.float()) == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("distance", ALL[:2])
@pytest.mark.parametrize("n", [5, 100])
def test_frechet_of_a_set_with_itself_is_zero(distance: Distance, n: int) -> None:
    real = normal(n, 20) * 10
    assert 0 <= distance(real, real) < 1e-8


@pytest.mark.parametrize("distance", ALL)
@pytest.mark.parametrize(
    ("real", "fake", "reason"),
    [
        (normal(1, 4), normal(9, 4), "real features of shape"),
        (normal(9, 4), normal(1, 4), "generated features of shape"),
        (normal(9, 4), normal(9, 4).flatten(), "generated features of shape"),
        (normal(9, 4), normal(9, 5), "real features have 4 columns and generated ones 5"),
        (normal(9, 4), normal(9, 4) / 0, "generated features of 9 of 9 images are not finite"),
        (normal(9, 4) * torch.nan, normal(9, 4), "real features of 9 of 9"),
    ],
)
def test_bad_features_are_refused(
    distance: Distance, real: Tensor, fake: Tensor, reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        distance(real, fake)


@pytest.mark.parametrize("components", [0, 9, 20])
def test_components_must_fit(components: int) -> None:
    with pytest.raises(UserError, match="set it to 8 or fewer"):
        frechet_distance_pca(normal(9, 12), normal(30, 12), components=components)


def test_evaluate_features_holds_the_three_and_refuses_unequal_sets() -> None:
    real, fake = normal(30, 6), normal(30, 6, 1) + 1
    assert evaluate_features(real, fake, components=4) == {
        "fd": frechet_distance_pca(real, fake, components=4),
        "fd_full": frechet_distance(real, fake),
        "kd": kernel_distance(real, fake),
        "n": 30,
    }
    with pytest.raises(UserError, match="use 29 of both"):
        evaluate_features(real, fake[:29])


@pytest.mark.parametrize(("n", "m"), [(200, 150), (200, 9), (9, 7)])
def test_frechet_from_statistics_is_that_of_the_features(n: int, m: int) -> None:
    real, fake = correlated_sets(n, m)
    statistics = [x for each in (real, fake) for x in (each.mean(0), each.T.cov())]
    assert frechet_from_statistics(*statistics) == pytest.approx(
        frechet_distance(real, fake), rel=1e-10
    )
    turned = frechet_from_statistics(*statistics[2:], *statistics[:2])
    assert turned == pytest.approx(frechet_distance(real, fake), rel=1e-10)


def test_frechet_from_statistics_equals_scipys_root_where_features_are_many() -> None:
    """As published FIDs are worked out: 300 features, a spectrum of ten powers."""
    draw = np.random.default_rng(0)
    sets = [draw.normal(size=(900, 300)) * np.logspace(0, -5, 300) for _ in range(2)]
    sets[1] = 1.2 * sets[1] + np.logspace(0, -4, 300)
    mu_1, mu_2 = (x.mean(0) for x in sets)
    sigma_1, sigma_2 = (np.cov(x.T) for x in sets)
    root = scipy.linalg.sqrtm(sigma_1 @ sigma_2).real
    expected = np.square(mu_1 - mu_2).sum() + np.trace(sigma_1 + sigma_2 - 2 * root)
    tensors = (torch.from_numpy(x) for x in (mu_1, sigma_1, mu_2, sigma_2))
    assert frechet_from_statistics(*tensors) == pytest.approx(expected, rel=1e-7)


def test_evaluate_features_in_all_dimensions() -> None:
    real, fake = normal(30, 6), normal(30, 6, 1) + 1
    found = evaluate_features(real, fake, components=None)
    assert found["fd"] == found["fd_full"] == frechet_distance(real, fake)
