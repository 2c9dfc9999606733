"""`--precision`: what a network computes in when it makes images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fasttrain.models import precision
from fasttrain.models.load import load_model
from fasttrain.sampling.sample import Wanted, sample_model
from fasttrain.system.cpu_rate import Gain
from tests.runs.calling import call
from tests.small_models import NCSNPP, PLAIN, write_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "cond.safetensors", PLAIN)


@pytest.mark.parametrize("network", [PLAIN, NCSNPP])
def test_bfloat16_is_the_same_image_up_to_its_rounding(
    network: dict[str, Any], tmp_path: Path
) -> None:
    path = write_model(tmp_path / "model.safetensors", network)
    files = {}
    for dtype in ("float32", "bfloat16"):
        wanted = Wanted(seeds="0-15", precision=dtype)
        picture = sample_model(path, str(tmp_path / f"{dtype}.png"), wanted)
        files[dtype] = np.asarray(Image.open(picture), int)
    apart = np.abs(files["float32"] - files["bfloat16"])
    assert 0 < apart.max() <= 12
    assert apart.mean() < 1


def test_auto_takes_what_is_faster(monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    network, _ = load_model(model)
    for low, dtype in ((1.0, torch.bfloat16), (3.0, torch.float32)):
        monkeypatch.setattr(precision, "bfloat16_gain", lambda low=low: Gain(2.0, low))
        precision.compute_in(network, precision.faster("auto", torch.device("cpu")))
        assert network.activation_dtype == dtype
    assert precision.faster("auto", torch.device("cuda")) == "bfloat16"


def test_an_unknown_precision(capsys: pytest.CaptureFixture[str], model: Path) -> None:
    status, _, error = call(capsys, "sample", str(model), "--precision", "float16")
    assert status == 2
    assert error == "fasttrain: error: --precision float16: choose from float32, bfloat16, auto\n"
