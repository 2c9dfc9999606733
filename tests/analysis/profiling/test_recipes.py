"""The recipes of the published runs: networks of the published size, numbers in our units."""

from __future__ import annotations

import pytest

from fasttrain.models.audit import audit_of
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings


@pytest.mark.parametrize(
    ("name", "parameters", "trainable", "share", "per_gpu", "batch", "rates", "half_life"),
    [
        (
            "imagenet64-d2o-f", 295_899_267, 62_833_347, 21.2, 128, 512, (8e-6, 4e-5), 50_000_000,
        ),
        ("cifar10-uncond-d2o-f", 56_395_523, 8_797_955, 15.6, 64, 256, (1e-4, 1e-4), 500_000),
    ],
)  # fmt: skip
def test_published_runs(
    name: str,
    parameters: int,
    trainable: int,
    share: float,
    per_gpu: int,
    batch: int,
    rates: tuple[float, float],
    half_life: int,
) -> None:
    settings = load_settings(name, [], FinetuneSettings)
    found = audit_of(settings)
    assert (found.total.parameters, found.total.trainable) == (parameters, trainable)
    assert round(100 * found.trainable_fraction, 1) == share
    assert settings.batch == batch
    assert (settings.generator.rate, settings.discriminator.optimizer.rate) == rates
    assert settings.r1.gamma == pytest.approx(1e-4 / per_gpu, rel=1e-12)  # their sums, our means
    assert settings.discriminator.norm_group == per_gpu
    assert (settings.ema.half_life, settings.ema.fraction) == (half_life, 0.05)
    assert settings.freeze == 1
