"""Score distillation: hand values, and Gaussian data, whose denoisers are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.data import Batch
from fasttrain.settings import ScoreSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.training.objectives.score_distillation import dmd, levels, sid
from fasttrain.training.score import Scores

MEAN, DEVIATION = 0.4, 0.3


def test_levels_are_the_grids() -> None:
    found = levels(torch.tensor([0.0, 0.5, 1.0]), 0.002, 80.0).flatten().tolist()
    ends = 0.002 ** (1 / 7), 80 ** (1 / 7)
    expected = [(ends[0] + place * (ends[1] - ends[0])) ** 7 for place in (0.02, 0.5, 0.98)]
    assert found == pytest.approx(expected, rel=1e-6)


def test_dmd_has_the_gradient_of_its_formula() -> None:
    x = torch.tensor([[1.0, 3.0], [0.5, 0.0]]).view(2, 1, 1, 2).requires_grad_()
    real = torch.tensor([[0.0, 1.0], [0.5, 0.5]]).view(2, 1, 1, 2)
    fake = torch.tensor([[0.3, 0.4], [0.0, 1.0]]).view(2, 1, 1, 2)
    losses = dmd(x, real=real, fake=fake)
    (gradient,) = torch.autograd.grad(losses.sum(), x)
    expected = [[0.3 / 1.5, -0.6 / 1.5], [-0.5 / 0.25, 0.5 / 0.25]]  # mean |x - real|: 1.5, 0.25
    torch.testing.assert_close(gradient.view(2, 2) * 2, torch.tensor(expected))
    assert losses.tolist() == pytest.approx([(0.04 + 0.16) / 4, (4 + 4) / 4])


def test_sid_by_hand() -> None:
    x = torch.tensor([1.0, 3.0]).view(1, 1, 1, 2)
    real, fake = x - torch.tensor([1.0, 2.0]), x - torch.tensor([1.5, 1.0])
    # real - fake: 0.5, -1; (real - x) - alpha (real - fake): -1 - 0.6, -2 + 1.2
    # mean |x - real|: 1.5
    expected = (0.5 * -1.6 + -1 * -0.8) / 1.5 / 2
    assert sid(x, real=real, fake=fake, alpha=1.2).item() == pytest.approx(expected, abs=1e-7)
    assert sid(x, real=real, fake=real, alpha=1.0).item() == 0


def denoiser(mean: float, deviation: float) -> Any:
    """The best one of Gaussian data."""

    def denoise(x: Tensor, t: Tensor, *_: Tensor | None) -> Tensor:
        variance = deviation**2
        return (variance * x + t**2 * mean) / (variance + t**2)

    denoise.sigma_min, denoise.sigma_max = 0.0, float("inf")  # type: ignore[attr-defined]
    return denoise


@pytest.mark.parametrize("form", ["dmd", "sid"])
def test_the_generators_distribution_becomes_the_datas(form: str) -> None:
    """x = m + c z for each pixel, beside a fake-score network that always knows it."""
    settings = load_settings("digits-dmd", [f"form={form}", "alpha=1.2"], ScoreSettings)
    m, c = (torch.tensor(value, requires_grad=True) for value in (-0.5, 0.8))
    optimizer = torch.optim.Adam([m, c], lr=0.02)
    batch = Batch(torch.zeros(64, 1, 4, 4), None, torch.arange(64))
    z = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    for step in range(100):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 if step < 60 else 0.006
        scores = Scores(settings, denoiser(MEAN, DEVIATION), denoiser(m.item(), c.item()))
        optimizer.zero_grad()
        scores.generator_loss(batch, m + c * (z - z.mean()) / z.std(), seed=step).backward()
        optimizer.step()
    assert m.item() == pytest.approx(MEAN, abs=0.05)
    assert c.item() == pytest.approx(DEVIATION, abs=0.05)


class Fake:
    """A fake-score network with one weight, as its engine shows it."""

    def __init__(self) -> None:
        self.parameters = {"weight": torch.nn.Parameter(torch.tensor(0.5))}

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        return self.parameters["weight"] * x


@pytest.mark.parametrize("form", ["dmd", "sid"])
def test_the_generators_loss_leaves_the_fake_score_network_alone(form: str) -> None:
    """Also where its gradient goes through that network."""
    settings = load_settings("digits-dmd", [f"form={form}"], ScoreSettings)
    fake = Fake()
    scores = Scores(settings, denoiser(MEAN, DEVIATION), fake)
    images = torch.full((8, 1, 2, 2), 0.7, requires_grad=True)
    with scores.frozen():
        scores.generator_loss(Batch(images.detach(), None, torch.arange(8)), images, 0).backward()
    assert images.grad is not None
    assert images.grad.abs().min() > 0
    weight = fake.parameters["weight"]
    assert weight.grad is None
    assert weight.requires_grad


def test_the_fake_score_network_learns_what_the_generator_makes() -> None:
    settings = load_settings("digits-dmd", [], ScoreSettings)
    images = torch.full((64, 1, 2, 2), 0.7)
    batch = Batch(torch.zeros_like(images), None, torch.arange(64))
    right, wrong = (
        Scores(settings, None, denoiser(mean, 1e-3)).fake_loss(batch, images, 0).item()
        for mean in (0.7, 0.0)
    )
    assert right < 1e-3 * wrong
