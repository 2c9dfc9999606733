"""The class ratio of diffused images: hand values, and Gaussian data, whose ratio is known."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.data import Batch
from fasttrain.discriminator.log_ratio import LogRatio
from fasttrain.models.build import new_network
from fasttrain.sampling.draws import Stream, latents
from fasttrain.settings import NetworkSettings, ScoreSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.training.objectives.class_ratio import (
    classifier_loss,
    levels,
    student_loss,
    weight,
)
from fasttrain.training.score import Ratios
from tests.small_models import PLAIN, small_network

MEAN, DEVIATION = 0.4, 0.3
FAKE = (-0.5, 0.8)


def log_density(x: Tensor, t: Tensor, mean: float, deviation: float) -> Tensor:
    """Of an image [N] of independent pixels N(mean, deviation^2), with noise of level t."""
    variance = deviation**2 + t**2
    return -((x - mean) ** 2 / variance + variance.log()).flatten(1).sum(1) / 2


class Known:
    """The engine of a classifier that knows the ratio of two Gaussians."""

    levels = (0.0, math.inf)

    def __init__(self, mean: float, deviation: float) -> None:
        self.module, self.own = self, (mean, deviation)
        self.seen: list[tuple[Tensor, Tensor]] = []

    def __call__(self, x: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        self.seen.append((x, t))
        t = t.expand(len(x), 1, 1, 1)
        return log_density(x, t, MEAN, DEVIATION) - log_density(x, t, *self.own)


@pytest.fixture(scope="module")
def settings() -> ScoreSettings:
    return load_settings("digits-ratio", [], ScoreSettings)


def test_hand_values() -> None:
    t = torch.tensor([0.5, 1.2])  # |t, 0.5|: 0.7071, 1.3
    assert weight(t, 0.5).tolist() == pytest.approx([0.5**0.5 / 2 / 0.5, 1.2 * 1.3 / 0.5])
    losses = student_loss(torch.tensor([2.0, -1.0]), t, sigma_data=0.5, pixels=4)
    assert losses.tolist() == pytest.approx([-(0.5**0.5) * 2 / 4, 1.2 * 1.3 / 0.5 / 4])
    assert levels(torch.tensor([0.0, 1.0])).tolist() == pytest.approx([math.exp(-1.2), 1.0])
    judged = classifier_loss(torch.tensor([1.0, 3.0, -2.0, 0.0]))
    real = (math.log1p(math.exp(-1)) + math.log1p(math.exp(-3))) / 2
    fake = (math.log1p(math.exp(-2)) + math.log(2)) / 2
    assert judged.loss.item() == pytest.approx(real + fake)
    assert (judged.real.item(), judged.fake.item()) == pytest.approx((2.0, -1.0))


def test_no_other_classifier_is_better_than_the_ratio_of_two_gaussians() -> None:
    """At one level, on evenly spaced quantiles of both."""
    places = (torch.arange(4000, dtype=torch.float64) + 0.5) / 4000
    normal = torch.special.ndtri(places).view(-1, 1, 1, 1)
    t = torch.tensor(0.5, dtype=torch.float64).view(1, 1, 1, 1)
    spread = [(deviation**2 + 0.25) ** 0.5 for deviation in (DEVIATION, FAKE[1])]
    x = torch.cat([MEAN + spread[0] * normal, FAKE[0] + spread[1] * normal])
    known = Known(*FAKE)(x, t, None)
    best = classifier_loss(known).loss.item()
    one = x.flatten()
    for other in (torch.ones_like(known), one, one**2, known, (3 * one).sin()):
        for by in (-0.05, 0.05):
            assert classifier_loss(known + by * other).loss.item() > best


def test_the_generators_distribution_becomes_the_datas(settings: ScoreSettings) -> None:
    """x = m + c z for each pixel, beside a classifier that always knows the ratio."""
    m, c = (torch.tensor(value, requires_grad=True) for value in FAKE)
    optimizer = torch.optim.Adam([m, c], lr=0.02)
    batch = Batch(torch.zeros(64, 1, 4, 4), None, torch.arange(64))
    z = torch.randn(64, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    z = (z - z.mean()) / z.std()
    for step in range(100):
        for group in optimizer.param_groups:
            group["lr"] = 0.03 if step < 60 else 0.006
        own = Ratios(settings, None, Known(m.item(), c.item()))
        optimizer.zero_grad()
        own.generator_loss(batch, m + c * z, seed=step).backward()
        optimizer.step()
    assert m.item() == pytest.approx(MEAN, abs=0.05)
    assert c.item() == pytest.approx(DEVIATION, abs=0.05)


def test_real_and_generated_images_have_the_same_levels_and_noises_of_their_own(
    settings: ScoreSettings,
) -> None:
    real, fake = torch.full((4, 1, 2, 2), 0.3), torch.full((4, 1, 2, 2), -0.2)
    index, known = torch.arange(4), Known(*FAKE)
    Ratios(settings, None, known).fake_loss(Batch(real, None, index), fake, seed=7)
    ((x, t),) = known.seen
    assert torch.equal(t[:4], t[4:])
    assert torch.equal(t[:4], levels(latents(7, Stream.FAKE_LEVEL, index, (1, 1, 1))))
    noise = latents(7, Stream.RATIO_NOISE, index, (1, 2, 2))
    assert torch.equal(x[:4], real + t[:4] * noise)
    assert torch.equal(x[4:], fake + t[4:] * latents(7, Stream.FAKE_NOISE, index, (1, 2, 2)))


DIT = {"img_resolution": 8, "img_channels": 1, "model_type": "DiT", "label_dim": 10}
DIT |= {"options": {"hidden_size": 16, "depth": 2, "num_heads": 2}, "prediction": {"kind": "flow"}}


@pytest.mark.parametrize("network", [PLAIN, DIT], ids=["SongUNet", "DiT"])
def test_the_classifier_begins_undecided_and_all_of_it_trains(network: dict[str, Any]) -> None:
    diffusion = small_network(NetworkSettings(**network))
    classifier = LogRatio(diffusion, sigma_data=0.5)
    x, labels = torch.randn(3, 1, 8, 8), torch.eye(10)[:3]
    t = torch.tensor([0.1, 1.0, 10.0]).view(3, 1, 1, 1)
    assert classifier(x, t, labels).tolist() == [0, 0, 0]
    torch.nn.init.normal_(classifier.weight)
    classifier(x, t, labels).square().sum().backward()
    trained = [p for p in classifier.parameters() if p.requires_grad]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in trained)
    idle = [n for n, p in diffusion.named_parameters() if not p.requires_grad]
    assert all(".dec." in name or "final_layer" in name for name in idle)
    assert (".dec." in idle[0]) == (network is PLAIN)


def test_the_classifier_learns_the_ratio_of_two_gaussians() -> None:
    """Of images of one grey each, from samples alone."""
    torch.manual_seed(0)
    small = PLAIN | {"img_resolution": 4, "channel_mult": (1,), "label_dim": 0}
    network = new_network("edm", NetworkSettings(**small)).eval()
    classifier = LogRatio(network, sigma_data=0.5)
    trained = [p for p in classifier.parameters() if p.requires_grad]
    optimizer = torch.optim.Adam(trained, betas=(0.9, 0.99))

    def drawn(n: int) -> Tensor:
        mean = torch.cat([torch.full((n, 1, 1, 1), 0.3), torch.full((n, 1, 1, 1), -0.3)])
        grey = mean + 0.3 * torch.randn(2 * n, 1, 1, 1)
        return grey + 0.4 * torch.randn(2 * n, 1, 4, 4)

    def known(x: Tensor) -> Tensor:
        """The mean of 16 pixels tells all."""
        grey, noise = x.mean((1, 2, 3))[:, None], torch.tensor(0.1)
        return log_density(grey, noise, 0.3, 0.3) - log_density(grey, noise, -0.3, 0.3)

    for step in range(100):
        optimizer.param_groups[0]["lr"] = 2e-2 if step < 60 else 4e-3
        optimizer.zero_grad()
        logits = classifier(drawn(64), torch.full((128, 1, 1, 1), 0.4), None)
        classifier_loss(logits).loss.backward()
        optimizer.step()
    x = drawn(500)
    with torch.no_grad():
        found, true = classifier(x, torch.full((1000, 1, 1, 1), 0.4), None), known(x)
    assert torch.corrcoef(torch.stack([found, true]))[0, 1] > 0.93
    slope = (found * true).sum() / true.square().sum()
    assert slope.item() == pytest.approx(0.9, abs=0.25)  # it is still rising towards 1
