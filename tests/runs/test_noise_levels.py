"""The noise levels that pre-training draws are those of its settings."""

from __future__ import annotations

from pathlib import Path

import pytest
from sklearn.datasets import load_digits

from fasttrain.checkpoints.stats import read_stats
from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start
from fasttrain.training.pretrain import pretrain
from tests.runs.conftest import BRIEFLY
from tests.tiny import FLOAT32, NETWORK

PIXELS = float(((load_digits().images / 8 - 1) ** 2).mean())
"""Mean square of the images, which the first batch has nearly, too."""


@pytest.mark.parametrize(("p_mean", "loss"), [(-5.0, 1.0), (5.0, PIXELS / 0.5**2)])
def test_the_first_loss_is_that_of_the_noise_level(
    digits: Path, tmp_path: Path, p_mean: float, loss: float
) -> None:
    """An untrained network says 0, so D(x + n) = c_skip (x + n). With little noise that is x + n,
    and the weighted loss is (n / sigma)^2 = 1; with much it is 0, and the loss (x / sigma_data)^2.
    """
    changes = [
        *NETWORK,
        *FLOAT32[:1],
        BRIEFLY,
        f"data.path={digits}",
        f"run={tmp_path / 'run'}",
        f"p_mean={p_mean}",
        "p_std=0.01",
        "images=64",
        "report_every=64",
    ]
    pretrain(load_settings("digits-edm", changes, PretrainSettings), start())
    first = read_stats(tmp_path / "run")[0]["loss/denoising"]
    assert first == pytest.approx(loss, rel=0.1)
