"""The Frechet objective against closed forms and numeric gradients; its averages by hand."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fasttrain.evaluation.metrics.distances import frechet_from_statistics
from fasttrain.training.objectives.frechet import (
    EPS,
    Real,
    RunningMoments,
    beside_classes,
    frechet_slopes,
    linear_part,
    trace_of_root,
)

CPU = torch.device("cpu")


def moments_of(x: Tensor, half_life: float = 1.0) -> RunningMoments:
    moments = RunningMoments(x.shape[1], half_life, CPU)
    moments.update(x.mean(0), x.T @ x / len(x), len(x))
    return moments


def features(count: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, width, generator=generator, dtype=torch.float64)


def test_trace_of_a_root_and_its_gradient() -> None:
    diagonal = torch.diag(torch.tensor([4.0, 9.0, 0.25], dtype=torch.float64)).requires_grad_()
    total = trace_of_root(diagonal)
    assert total.item() == pytest.approx(2 + 3 + 0.5)
    (gradient,) = torch.autograd.grad(total, diagonal)
    torch.testing.assert_close(gradient, torch.diag(torch.tensor([0.25, 1 / 6, 1.0]).double()))
    factor = features(5, 4).requires_grad_()
    assert torch.autograd.gradcheck(lambda f: trace_of_root(f.T @ f), factor)


def test_a_matrix_of_low_rank_has_no_gradient_off_its_range() -> None:
    matrix = torch.diag(torch.tensor([4.0, 1e-14, 0.0], dtype=torch.float64)).requires_grad_()
    total = trace_of_root(matrix)
    assert total.item() == pytest.approx(2.0)
    (gradient,) = torch.autograd.grad(total, matrix)
    torch.testing.assert_close(gradient, torch.diag(torch.tensor([0.25, 0.0, 0.0]).double()))


def test_the_distance_of_diagonal_gaussians_by_hand() -> None:
    """Means 3 apart in one dimension, deviations 1 and 2, 5 and 5: 9 + (2 - 1)^2."""
    moments = RunningMoments(2, 1.0, CPU)
    mean = torch.tensor([3.0, 0.0], dtype=torch.float64)
    covariance = torch.diag(torch.tensor([4.0, 25.0], dtype=torch.float64))
    moments.update(mean, covariance + torch.outer(mean, mean), 10)
    real = Real.of(torch.zeros(2), torch.diag(torch.tensor([1.0, 25.0])))
    assert frechet_slopes(moments, real).distance.item() == pytest.approx(10.0)


def test_the_distance_is_that_of_evaluation() -> None:
    fake, real = features(60, 6), 2 * features(80, 6, seed=1) + 1
    covariance = torch.cov(fake.T, correction=0)
    expected = frechet_from_statistics(real.mean(0), torch.cov(real.T), fake.mean(0), covariance)
    found = frechet_slopes(moments_of(fake), Real.of(real.mean(0), torch.cov(real.T)))
    assert found.distance.item() == pytest.approx(expected)


def test_the_linear_part_has_the_gradient_of_the_loss() -> None:
    """Through the current batch alone: finite differences of ln FD in a feature of the batch, with
    what came before it as a constant. In parts, the same."""
    before, batch = features(40, 4), features(8, 4, seed=1)
    statistics = features(50, 4, seed=2) * 1.5 + 0.3
    real = Real.of(statistics.mean(0), torch.cov(statistics.T))

    def running(x: Tensor) -> RunningMoments:
        moments = moments_of(before, half_life=20.0)
        moments.update(x.mean(0), x.T @ x / len(x), len(x))
        return moments

    def log_distance(x: Tensor) -> float:
        return math.log(frechet_slopes(running(x), real).distance.item() + EPS)

    leaf = batch.clone().requires_grad_()
    slopes = frechet_slopes(running(batch), real)
    assert running(batch).weight == pytest.approx(1 - 0.5**0.4)
    (gradient,) = torch.autograd.grad(linear_part(leaf, slopes), leaf)
    step = 1e-5
    for place in ((0, 0), (3, 2), (7, 3)):
        moved = [batch.clone(), batch.clone()]
        moved[0][place] += step
        moved[1][place] -= step
        slope = (log_distance(moved[0]) - log_distance(moved[1])) / (2 * step)
        assert gradient[place].item() == pytest.approx(slope, rel=1e-4)
    halves = sum(0.5 * linear_part(part, slopes) for part in leaf.chunk(2))
    assert isinstance(halves, Tensor)
    torch.testing.assert_close(torch.autograd.grad(halves, leaf)[0], gradient)


def test_averages_by_hand() -> None:
    """The plain mean of everything until a batch weighs as much as the half-life says."""
    moments = RunningMoments(1, half_life=8.0, device=CPU)  # a batch of 4: 1 - 0.5^0.5 = 0.29
    weights = []
    for value in (1.0, 2.0, 3.0, 4.0):
        moments.update(torch.tensor([value]).double(), torch.tensor([[value**2]]).double(), 4)
        weights.append(moments.weight)
    assert weights == pytest.approx([1.0, 0.5, 1 / 3, 1 - 0.5**0.5])
    mean = 2 + (1 - 0.5**0.5) * 2
    assert moments.mean.item() == pytest.approx(mean)
    bad = torch.tensor([math.nan]).double()
    moments.update(bad, bad[None], 4)
    assert moments.mean.item() == pytest.approx(mean)
    other = RunningMoments(1, half_life=8.0, device=CPU)
    other.load_state_dict({n: t.clone() for n, t in moments.state_dict("a/").items()}, "a/")
    assert other.mean.item() == moments.mean.item()
    assert int(other.images) == 16


def test_images_in_the_wrong_class_are_seen_only_beside_the_classes() -> None:
    """Two classes around 0.5 and -0.5, and the same images dealt to both: moments of all images
    together are the same, those beside the classes are not, and descent sorts the images."""
    labels = torch.eye(2, dtype=torch.float64).repeat_interleave(32, 0)
    spread = torch.linspace(-1, 1, 32, dtype=torch.float64)
    right = torch.cat([spread + 0.5, spread - 0.5])[:, None]
    dealt = right.sort(dim=0).values
    dealt = torch.cat([dealt[::2], dealt[1::2]]).requires_grad_()

    def slopes(x: Tensor, length: float) -> tuple[float, Tensor]:
        joined, real = (beside_classes(y, labels, length) for y in (x, right))
        assert joined.shape[1] == (3 if length else 1)
        covariance = torch.atleast_2d(torch.cov(real.T, correction=0))
        found = frechet_slopes(moments_of(joined.detach()), Real.of(real.mean(0), covariance))
        (gradient,) = torch.autograd.grad(linear_part(joined, found), x)
        return found.distance.item(), gradient

    distance, _ = slopes(dealt, 0.0)
    assert distance == pytest.approx(0.0, abs=1e-9)
    distance, gradient = slopes(dealt, 0.7)
    assert distance > 0.02
    assert gradient[:32].mean() < 0 < gradient[32:].mean()
    optimizer = torch.optim.Adam([dealt], lr=0.03)
    for _ in range(50):
        dealt.grad = slopes(dealt, 0.7)[1]
        optimizer.step()
    means = [dealt[:32].mean().item(), dealt[32:].mean().item()]
    assert means == pytest.approx([0.5, -0.5], abs=0.1)
    assert beside_classes(right, labels, 0.7)[40].tolist() == [right[40].item(), 0.0, 0.7]


def test_gradient_descent_moves_features_to_the_real_moments() -> None:
    statistics = features(500, 3, seed=2) * torch.tensor([1.0, 2.0, 0.5]) + 1.0
    real = Real.of(statistics.mean(0), torch.cov(statistics.T))
    x = features(64, 3).requires_grad_()
    optimizer = torch.optim.Adam([x], lr=0.05)
    distances = []
    for _ in range(200):
        slopes = frechet_slopes(moments_of(x.detach()), real)
        distances.append(slopes.distance.item())
        optimizer.zero_grad()
        linear_part(x, slopes).backward()
        optimizer.step()
    assert distances[-1] < 0.02 * distances[0]
