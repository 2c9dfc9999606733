"""Estimates against the plain distances, the jackknife repeated for each group, and whether 95 %
intervals hold what they should."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fasttrain.evaluation import frechet_distance, kernel_distance
from fasttrain.evaluation.metrics import resampling
from fasttrain.evaluation.metrics.resampling import (
    GROUPS,
    T_GROUPS,
    bounds,
    frechet_estimate,
    kernel_estimate,
    share_estimate,
)
from fasttrain.evaluation.metrics.statistics import Moments, Statistics
from fasttrain.system.processes import World

ALONE = World(0, 1, torch.device("cpu"))


def normal(n: int, width: int, seed: int = 0) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=draw, dtype=torch.float64)


def statistics(x: Tensor) -> Statistics:
    moments = Moments(x.shape[1])
    moments.update(x)
    return moments.statistics(ALONE)


def jackknifed(distance, fake: Tensor) -> float:
    """Half of the interval, each group left out for real."""
    found = []
    for begin, end in bounds(len(fake)):
        found.append(distance(torch.cat([fake[:begin], fake[end:]])))
    mean = sum(found) / GROUPS
    return T_GROUPS * (sum((x - mean) ** 2 for x in found) * (GROUPS - 1) / GROUPS) ** 0.5


@pytest.mark.parametrize("width", [5, 60])
def test_frechet_is_the_distance_and_its_jackknife(width: int) -> None:
    """Also with more features than images, where covariances have no inverse."""
    real, fake = normal(90, width), (1.3 * normal(47, width, 1) + 0.2).float().double()
    found = frechet_estimate(statistics(real), statistics(fake), fake.float(), ALONE)
    value = frechet_distance(real, fake)
    assert found.value == pytest.approx(value, rel=1e-10)
    assert found.high is not None
    expected = jackknifed(lambda x: frechet_distance(real, x), fake)
    assert found.high - value == pytest.approx(expected, rel=1e-5)


def test_frechet_without_features_has_no_interval_and_none_goes_below_zero() -> None:
    real, fake = normal(90, 5), normal(47, 5, 1)
    assert frechet_estimate(statistics(real), statistics(fake), None, ALONE).low is None
    few = fake[:39]
    assert frechet_estimate(statistics(real), statistics(few), few, ALONE).low is None
    same = frechet_estimate(statistics(real), statistics(real), real, ALONE)
    assert same.value == pytest.approx(0, abs=1e-10)
    assert same.low == 0


def test_kernel_is_the_distance_and_its_jackknife() -> None:
    real, fake = normal(50, 4), normal(63, 4, 1) + 0.4
    found = kernel_estimate(real.float(), fake.float(), ALONE)
    value = kernel_distance(real.float(), fake.float())
    assert found.value == pytest.approx(value, rel=1e-12)
    assert found.high is not None
    expected = jackknifed(lambda x: kernel_distance(real, x), fake.float().double())
    assert found.high - value == pytest.approx(expected, rel=1e-5)
    assert kernel_estimate(real, fake[:39], ALONE).low is None
    assert kernel_estimate(real[:7], fake[:3], ALONE).value == pytest.approx(
        kernel_distance(real[:7], fake[:3]), rel=1e-12
    )


def test_large_sets_are_looked_at_in_subsets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("ALL_PAIRS", 200), ("SUBSETS", 60), ("SUBSET", 50)):
        monkeypatch.setattr(resampling, name, value)
    real, fake = normal(300, 4), normal(260, 4, 1) + 0.4
    told = []
    found = kernel_estimate(real, fake, ALONE, lambda: told.append(1))
    assert len(told) == 60
    assert found.low is not None
    assert found.high is not None
    assert found.value != kernel_distance(real, fake)
    assert found.low < kernel_distance(real, fake) < found.high
    assert found == kernel_estimate(real, fake, ALONE)


def test_intervals_hold_the_mean_of_other_draws() -> None:
    """About 95 of 100; the band is four standard errors wide."""
    real = normal(400, 3)
    reference = statistics(real)
    draws = [1.2 * normal(120, 3, seed) + 0.3 for seed in range(1, 81)]
    for estimate in (
        lambda x: frechet_estimate(reference, statistics(x), x, ALONE),
        lambda x: kernel_estimate(real[:60], x, ALONE),
    ):
        found = [estimate(x) for x in draws]
        mean = sum(each.value for each in found) / len(found)
        held = sum(each.low < mean < each.high for each in found) / len(found)
        assert 0.87 < held <= 1


def test_shares_have_the_interval_of_a_share() -> None:
    """Wilson's: the shares from which this one is 1.96 of their own deviations away."""
    for share, images in ((0.2, 401), (0.0, 50), (1.0, 50), (0.5, 9)):
        found = share_estimate(share, images)
        assert found.low is not None
        assert found.high is not None
        assert 0 <= found.low <= share <= found.high <= 1
        for end in {found.low, found.high} - {0.0, 1.0}:
            assert abs(share - end) == pytest.approx(1.96 * (end * (1 - end) / images) ** 0.5)
        assert found.high - found.low > 0.05
