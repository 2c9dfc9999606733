"""Schedules in images: hand values, and what an optimizer makes of them."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fasttrain.settings import OptimizerSettings
from fasttrain.settings.decay import DecaySettings
from fasttrain.training.engines.local import LocalEngine


@pytest.mark.parametrize(
    ("kind", "end", "factors"),
    [
        ("linear", 0.0, (1.0, 0.75, 0.5, 0.0, 0.0)),
        ("linear", 0.2, (1.0, 0.8, 0.6, 0.2, 0.2)),
        ("cosine", 0.0, (1.0, 0.853553, 0.5, 0.0, 0.0)),  # (1 + cos(pi/4)) / 2
        ("cosine", 2.0, (1.0, 1.146447, 1.5, 2.0, 2.0)),
    ],
)
def test_hand_values(kind: str, end: float, factors: tuple[float, ...]) -> None:
    decay = DecaySettings(kind=kind, until=4000, end=end)
    found = [decay.factor(images) for images in (0, 1000, 2000, 4000, 9000)]
    assert found == pytest.approx(factors, abs=1e-6)


def test_without_a_schedule_the_factor_is_one() -> None:
    assert DecaySettings().factor(10**9) == 1.0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "linear"}, "set the number of images"),
        ({"until": 5}, "set linear or cosine"),
        ({"kind": "linear", "until": 5, "begin": 5}, "begin: 5 is not below until"),
    ],
)
def test_half_a_schedule_is_refused(values: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecaySettings.model_validate(values)


def test_a_decay_begins_late() -> None:
    decay = DecaySettings(kind="linear", begin=1000, until=2000, end=0.2)
    found = [decay.factor(images) for images in (0, 1000, 1500, 2000, 3000)]
    assert found == pytest.approx([1.0, 1.0, 0.6, 0.2, 0.2])


def test_a_rate_ramps_up_and_decays() -> None:
    """Adam without moments moves each weight by the rate: SGD of signs."""
    decay = DecaySettings(kind="linear", until=400, end=0.5)
    settings = OptimizerSettings(rate=0.1, betas=(0.0, 0.0), ramp_up=200, decay=decay)
    engine = LocalEngine(nn.Linear(1, 1, bias=False).double(), settings)
    moved = []
    for images in (100, 200, 400, 800):
        before = engine.module.weight.item()
        engine.set_progress(images)
        engine.backward(engine(torch.ones(1, 1, dtype=torch.float64)).sum())
        engine.step()
        moved.append(before - engine.module.weight.item())
    expected = [0.1 * 0.5 * 0.875, 0.1 * 0.75, 0.1 * 0.5, 0.1 * 0.5]
    assert moved == pytest.approx(expected, rel=1e-5)
