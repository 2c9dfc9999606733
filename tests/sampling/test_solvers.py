"""Samplers against closed forms: for Gaussian data of deviation s, D(x; sigma) = x s^2 / (s^2 +
sigma^2) and the probability flow maps x_T to x_0 = x_T s / sqrt(s^2 + sigma_T^2)."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from fasttrain.models.networks import build_network
from fasttrain.sampling.sampler import Churn, Sampler
from fasttrain.sampling.solvers import heun_sampler, noise_levels, one_step, two_step
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings

DATA = 0.5


class GaussianDenoiser:
    """The ideal denoiser of Gaussian data; counts its evaluations."""

    def __init__(self, sigma_min: float = 0.0, sigma_max: float = math.inf) -> None:
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.sigmas: list[float] = []

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        return torch.as_tensor(sigma, dtype=torch.float64)

    def __call__(
        self, x: Tensor, sigma: Tensor | float, class_labels: Tensor | None = None
    ) -> Tensor:
        self.sigmas.append(float(sigma))
        return x * DATA**2 / (DATA**2 + float(sigma) ** 2)


def heun_error(num_steps: int) -> float:
    latents = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    exact = 80 * DATA / math.sqrt(DATA**2 + 80**2)
    images = heun_sampler(GaussianDenoiser(), latents, num_steps=num_steps, sigma_min=1e-4)
    return abs(float(images) - exact)


def test_heun_converges_with_second_order() -> None:
    errors = [heun_error(steps) for steps in (16, 32, 64)]
    orders = [math.log2(a / b) for a, b in pairwise(errors)]
    assert all(1.8 < order < 2.6 for order in orders), (errors, orders)


def test_heun_evaluates_twice_a_step_on_the_clamped_grid() -> None:
    net = GaussianDenoiser(sigma_min=0.02, sigma_max=50.0)
    latents = torch.randn(2, 1, 3, 5, generator=torch.Generator().manual_seed(0))
    images = heun_sampler(net, latents, num_steps=4)
    grid = noise_levels(4, 0.02, 50.0)
    assert grid[0] == pytest.approx(50)
    assert grid[-1] == pytest.approx(0.02)
    assert [round(s ** (1 / 7), 9) for s in grid] == pytest.approx(
        torch.linspace(50 ** (1 / 7), 0.02 ** (1 / 7), 4, dtype=torch.float64).tolist()
    )
    a, b, c, d = grid
    assert net.sigmas == pytest.approx([a, b, b, c, c, d, d])
    assert images.dtype == torch.float32


def test_one_heun_step_is_the_denoiser() -> None:
    latents = torch.full((1, 1, 1, 1), 0.3)
    images = heun_sampler(GaussianDenoiser(), latents, num_steps=1)
    assert float(images) == pytest.approx(0.3 * 80 * DATA**2 / (DATA**2 + 80**2), rel=1e-6)


def plain_churn(z: list[float], noise: list[list[float]], steps: int, churn: float) -> list[float]:
    """Algorithm 2, independently: scalars, closed-form slope x sigma / (s^2 + sigma^2)."""
    low, high = 0.002 ** (1 / 7), 80 ** (1 / 7)
    t = [(high + i / (steps - 1) * (low - high)) ** 7 for i in range(steps)] + [0.0]
    out = []
    for pixel, start in enumerate(z):
        x = start * t[0]
        for i in range(steps):
            gamma = min(churn / steps, 2**0.5 - 1) if 0.05 <= t[i] <= 50 else 0.0
            hat = t[i] * (1 + gamma)
            x += (hat**2 - t[i] ** 2) ** 0.5 * 1.003 * noise[i][pixel]
            d = x * hat / (DATA**2 + hat**2)
            y = x + (t[i + 1] - hat) * d
            if i < steps - 1:
                d2 = y * t[i + 1] / (DATA**2 + t[i + 1] ** 2)
                y = x + (t[i + 1] - hat) * (d + d2) / 2
            x = y
        out.append(x)
    return out


@pytest.mark.parametrize("churn", [0.0, 2.0, 40.0])
def test_churn_equals_a_plain_implementation(churn: float) -> None:
    generator = torch.Generator().manual_seed(1)
    latents = torch.randn(2, 1, 1, 3, generator=generator, dtype=torch.float64)
    noise = torch.randn(7, 2, 1, 1, 3, generator=generator, dtype=torch.float64)
    asked: list[int] = []

    def draw(step: int) -> Tensor:
        asked.append(step)
        return noise[step]

    sampler = Sampler("heun", steps=7, churn=Churn(churn, 0.05, 50, 1.003))
    images = sampler(GaussianDenoiser(), latents, None, draw)
    flat = [step.flatten().tolist() for step in noise]
    expected = plain_churn(latents.flatten().tolist(), flat, 7, churn)
    torch.testing.assert_close(images.flatten(), torch.tensor(expected), rtol=1e-6, atol=1e-7)
    inside = [i for i, t in enumerate(noise_levels(7, 0.002, 80.0)) if 0.05 <= t <= 50]
    assert asked == (inside if churn else [])


def test_long_churned_chains_keep_the_data_deviation() -> None:
    generator = torch.Generator().manual_seed(2)
    latents = torch.randn(4096, 1, 1, 1, generator=generator)
    images = heun_sampler(
        GaussianDenoiser(),
        latents,
        num_steps=32,
        s_churn=10,
        noise=lambda step: torch.randn(4096, 1, 1, 1, generator=generator),
    )
    assert float(images.std()) == pytest.approx(DATA, rel=0.06)


def test_churn_without_noise_and_empty_ranges_are_refused() -> None:
    latents = torch.zeros(1, 1, 1, 1)
    with pytest.raises(ValueError, match="needs `noise`"):
        heun_sampler(GaussianDenoiser(), latents, num_steps=2, s_churn=1.0)
    with pytest.raises(ValueError, match="not an increasing range"):
        heun_sampler(GaussianDenoiser(sigma_max=0.001), latents, num_steps=2)
    with pytest.raises(ValueError, match="at least one step"):
        heun_sampler(GaussianDenoiser(), latents, num_steps=0)
    with pytest.raises(ValueError, match="sigma_mid is 90"):
        two_step(GaussianDenoiser(), latents, sigma_mid=90)


def test_one_and_two_step_by_hand() -> None:
    z = torch.tensor([[[[0.25, -1.5]]]], dtype=torch.float64)

    def generator(x: Tensor, sigma: float, class_labels: Tensor | None) -> Tensor:
        assert class_labels is labels
        return x / (1 + sigma) + 0.125

    labels = torch.ones(1, 2)
    x0 = 80 * z / 81 + 0.125
    torch.testing.assert_close(one_step(generator, z, labels), x0)
    # The line from (80, x_T) to (0, x0), read at 0.8: a hundredth of the way from x0.
    x_mid = 0.99 * x0 + 0.01 * (80 * z)
    torch.testing.assert_close(two_step(generator, z, labels), x_mid / 1.8 + 0.125)


def test_gradients_flow_through_both_evaluations_of_two_steps() -> None:
    torch.manual_seed(0)
    net = build_network("one_step", "SongUNet", 8, 1, 0, model_channels=8, channel_mult=[1])
    latents = torch.randn(2, 1, 8, 8, requires_grad=True)
    images = two_step(net, latents)
    assert images.dtype == torch.float32
    (gradient,) = torch.autograd.grad(images.sum(), latents)
    # Against a central difference along one direction.
    with torch.no_grad():
        step = 1e-2 * torch.ones_like(latents)
        change = (two_step(net, latents + step) - two_step(net, latents - step)).double().sum() / 2
    assert float(change) == pytest.approx(float((gradient * step).sum()), rel=2e-2)
    assert float(gradient.abs().min()) > 0


@pytest.mark.parametrize(
    ("changes", "sigmas"),
    [([], [80.0]), (["sigma=20"], [20.0]), (["sigma=20", "sigma_mid=0.8"], [20.0, 0.8])],
)
def test_a_generators_noise_levels_are_those_of_its_settings(
    changes: list[str], sigmas: list[float]
) -> None:
    sampler = Sampler.of(load_settings("digits-d2o-f", changes, FinetuneSettings))
    network = GaussianDenoiser()
    images = sampler(network, torch.ones(1, 1, 1, 1, dtype=torch.float64))
    assert network.sigmas == sigmas
    image, level = 0.0, 0.0  # the second step starts on the line from the image to its latents
    for sigma in sigmas:
        noisy = image + (1 - image / sigmas[0]) * sigma if level else sigma
        image, level = noisy * DATA**2 / (DATA**2 + sigma**2), sigma
    assert float(images) == pytest.approx(image, rel=1e-6)
