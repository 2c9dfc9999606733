"""The preconditioning table: what a perfect F gives, where the settings put time and noise."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fasttrain.models.networks.prediction import Prediction
from fasttrain.settings.prediction import PredictionSettings
from fasttrain.settings.schedules import END, discrete_levels

SIGMAS = torch.tensor([0.05, 0.5, 2.5, 40.0], dtype=torch.float64)
KINDS = ("epsilon", "score", "v", "x0", "flow", "reverse_flow")


def perfect(kind: str, x0: Tensor, e: Tensor, s: Tensor) -> Tensor:
    """What F predicts when it knows image and noise: alpha = 1 / sqrt(1 + s^2) of the kinds that
    preserve the variance."""
    alpha = (1 + s * s).rsqrt()
    return {
        "epsilon": e,
        "score": -e,
        "v": alpha * e - s * alpha * x0,
        "x0": x0,
        "flow": e - x0,
        "reverse_flow": x0 - e,
    }[kind]


@pytest.mark.parametrize("kind", KINDS)
def test_a_perfect_network_gives_the_image(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x0, e = (torch.randn(4, dtype=torch.float64, generator=generator) for _ in range(2))
    row = Prediction(PredictionSettings(kind=kind))
    c_skip, c_out, _, _ = row.coefficients(SIGMAS)
    image = c_skip * (x0 + SIGMAS * e) + c_out * perfect(kind, x0, e, SIGMAS)
    torch.testing.assert_close(image, x0, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("kind", "deviation"), [("v", 1.0), ("epsilon", 1.0), ("edm", 0.5)])
def test_the_input_has_the_variance_that_the_network_saw(kind: str, deviation: float) -> None:
    row = Prediction(PredictionSettings(kind=kind))
    c_in = row.coefficients(SIGMAS)[2]
    variance = c_in**2 * (deviation**2 + SIGMAS**2)
    torch.testing.assert_close(variance, torch.ones_like(variance))


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (PredictionSettings(kind="edm"), SIGMAS.log() / 4),
        (PredictionSettings(kind="edm", scale=250.0), 250 * SIGMAS.log()),
        (PredictionSettings(kind="score"), (SIGMAS / 2).log()),
        (PredictionSettings(kind="score", time="half"), SIGMAS / 2),
        (PredictionSettings(kind="v", time="angle"), SIGMAS.atan() * 2 / math.pi),
        (PredictionSettings(kind="flow", scale=1000.0), 1000 * SIGMAS / (1 + SIGMAS)),
        (PredictionSettings(kind="reverse_flow"), 1 / (1 + SIGMAS)),
    ],
)
def test_times(settings: PredictionSettings, expected: Tensor) -> None:
    time = Prediction(settings).coefficients(SIGMAS)[3]
    torch.testing.assert_close(time.double(), expected, rtol=1e-6, atol=1e-6)


def test_an_image_network_that_is_told_a_flows_time_sees_what_a_flows_does() -> None:
    row = Prediction(PredictionSettings(kind="x0", time="reverse_flow"))
    torch.testing.assert_close(row.coefficients(SIGMAS)[2], 1 / (1 + SIGMAS))


def test_sigma_data_and_eps_are_edms() -> None:
    row = Prediction(PredictionSettings(kind="edm", sigma_data=1.0, eps=0.0))
    c_skip, c_out, c_in, _ = row.coefficients(SIGMAS)
    torch.testing.assert_close(c_skip, 1 / (1 + SIGMAS**2))
    torch.testing.assert_close(c_out, SIGMAS * c_in)
    edge = torch.tensor([0.1], dtype=torch.float64)
    boundary = Prediction(PredictionSettings(eps=0.1)).coefficients(edge)
    assert float(boundary[0]) == 1
    assert float(boundary[1]) == 0
    assert Prediction(PredictionSettings(), one_step=True).eps == 0.002


@pytest.mark.parametrize("betas", ["linear", "scaled_linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("zero_snr", [False, True])
def test_steps_are_their_own_times(betas: str, zero_snr: bool) -> None:
    settings = PredictionSettings(kind="v", betas=betas, steps=50, zero_snr=zero_snr)
    row = Prediction(settings)
    levels = torch.tensor(settings.levels, dtype=torch.float64)
    assert bool((levels.diff() > 0).all())
    assert torch.equal(row.time(levels), torch.arange(50, dtype=torch.float64))
    middle = (levels[:-2] * levels[1:-1]).sqrt()  # half-way in log s, before the last step
    half = torch.arange(48, dtype=torch.float64) + 0.5
    torch.testing.assert_close(row.time(middle), half, rtol=0, atol=1e-9)
    assert (settings.levels[-1] == END) == zero_snr
    assert settings.start == settings.levels[-1]
    beyond = row.time(torch.tensor([0.0, 1e-9, 1e30], dtype=torch.float64))
    assert beyond.tolist() == [0, 0, 49]


def test_float32_sigmas_find_their_step() -> None:
    settings = PredictionSettings(kind="epsilon", betas="cosine")
    levels = torch.tensor(settings.levels, dtype=torch.float32)
    expected = torch.arange(1000, dtype=torch.float64)
    assert torch.equal(Prediction(settings).time(levels), expected)


def test_published_ends() -> None:
    """Of DDPM, Stable Diffusion and LSUN churches of latent-diffusion, at t = 999."""
    linear = PredictionSettings(kind="epsilon", beta_start=0.0001, beta_end=0.02)
    assert linear.range[1] == pytest.approx(157.407, rel=1e-5)
    assert discrete_levels("scaled_linear", 1000, 0.00085, 0.012)[-1] == pytest.approx(
        14.6146, rel=1e-5
    )
    assert discrete_levels("scaled_linear", 1000, 0.0015, 0.0155)[-1] == pytest.approx(
        38.659, rel=1e-5
    )


@pytest.mark.parametrize(
    ("settings", "start", "gain"),
    [
        (PredictionSettings(), 80.0, 0.5),
        (PredictionSettings(sigma_min=0.01, sigma_max=40.0), 40.0, 0.5),
        (PredictionSettings(kind="epsilon"), 2.5023, 2.5023),
        (PredictionSettings(kind="epsilon", time="vp", vp_beta_d=19.9, vp_beta_min=0.1), 2.5, 2.5),
        (PredictionSettings(kind="score"), 2.5, 2.5),
        (PredictionSettings(kind="v"), 157.407, 1.0),
        (PredictionSettings(kind="x0"), 157.407, 1.0),
        (PredictionSettings(kind="flow"), END, 1.0),
        (PredictionSettings(kind="v", zero_snr=True), END, 1.0),
    ],
)
def test_where_one_step_starts(settings: PredictionSettings, start: float, gain: float) -> None:
    assert settings.start == pytest.approx(start, rel=1e-4)
    assert Prediction(settings).gain(settings.start) == pytest.approx(gain, rel=1e-3)


def test_continuous_times_are_those_of_their_levels() -> None:
    settings = PredictionSettings(kind="epsilon", time="vp", vp_beta_d=10.0, vp_beta_min=0.2)
    for t in (0.01, 0.5, 1.0):
        s = math.sqrt(math.expm1(0.5 * 10 * t * t + 0.2 * t))
        sigma = torch.tensor(s, dtype=torch.float64)
        assert float(Prediction(settings).time(sigma)) == pytest.approx(999 * t, rel=1e-9)
        rounded = PredictionSettings(kind="epsilon", time="edm_vp", vp_beta_d=10.0, vp_beta_min=0.2)
        assert float(Prediction(rounded).time(sigma)) == pytest.approx(999 * t, rel=2e-3)


def test_iddpm_rounds_to_its_levels() -> None:
    settings = PredictionSettings(kind="epsilon", time="iddpm", steps=100, learned_variance=True)
    row = Prediction(settings)
    levels = torch.tensor(settings.levels, dtype=torch.float64)
    assert torch.equal(row.round(levels * 1.0001), levels)
    assert row.time(levels[:-1]).tolist() == list(range(99, -1, -1))


def test_bounds_must_be_a_range() -> None:
    with pytest.raises(ValueError, match="sigma_min 2 is not below sigma_max 1"):
        PredictionSettings(sigma_min=2.0, sigma_max=1.0)
