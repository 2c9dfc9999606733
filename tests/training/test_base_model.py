"""What fine-tuning refuses to begin with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from fasttrain.checkpoints.saved import SavedRun
from fasttrain.models.files.model_file import ModelFile
from fasttrain.models.files.model_info import ModelInfo
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.training.base_model import (
    check_same_classes,
    check_same_network,
    check_same_step,
)
from fasttrain_data import run_conversion
from fasttrain_data.options import Options


@pytest.fixture
def settings(tmp_path: Path) -> FinetuneSettings:
    """Of a set of two classes, cat 0 and fox 1."""
    for name in ("cat", "fox"):
        (tmp_path / "images" / name).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "images" / name / "0.png")
    run_conversion(str(tmp_path / "images"), tmp_path / "set", Options(), max_bad=0)
    changes = [f"data.path={tmp_path / 'set'}", "network.label_dim=2"]
    return load_settings("digits-d2o-f", changes, FinetuneSettings)


def model(settings: FinetuneSettings, *classes: str) -> ModelFile:
    info = ModelInfo(
        task="pretrain", network=settings.network, sigma=None, name="m", classes=classes
    )
    return ModelFile(Path("model.safetensors"), {}, info, "model")


def test_a_model_whose_classes_have_other_numbers(settings: FinetuneSettings) -> None:
    """Its labels would be wrong, and nothing else would show it."""
    refusal = r"class cat is number 0 of the data and 1 of model.safetensors: .*--class-names"
    with pytest.raises(UserError, match=refusal):
        check_same_classes(settings, model(settings, "fox", "cat"))
    with pytest.raises(UserError, match="class fox is number 1 of the data and 0 of"):
        check_same_classes(settings, model(settings, "fox", "dog"))
    network = settings.network.model_copy(update={"label_dim": 0})
    without = settings.model_copy(update={"network": network})
    for fine, classes in (
        (settings, ("cat", "fox")),
        (settings, ("cat", "dog")),
        (settings, ("0", "1")),
        (settings, ()),
        (without, ("fox", "cat")),
    ):
        check_same_classes(fine, model(settings, *classes))


def test_a_generator_of_another_noise_level_is_refused(settings: FinetuneSettings) -> None:
    """Its images at level 80 are none that it was trained to make."""
    info = model(settings).info
    assert info is not None
    sid = ModelFile(Path("sid.safetensors"), {}, replace(info, task="finetune", sigma=2.5), "model")
    with pytest.raises(
        UserError, match=r"noise level 2\.5, and the run's is 80: set sigma to 2\.5"
    ):
        check_same_step(settings, sid)
    check_same_step(settings.model_copy(update={"sigma": 2.5}), sid)
    check_same_step(settings, model(settings))


def test_where_the_settings_of_another_network_are(settings: FinetuneSettings) -> None:
    """`fasttrain import` takes files, and no runs."""
    theirs = load_settings("digits-edm", ["network.prediction.kind=v"], PretrainSettings)
    run = Mock(spec=SavedRun, settings=theirs, path=Path("runs/v"), images=0, state={})
    with pytest.raises(UserError, match=r"are `network` in runs/v/config\.yaml, and base the rec"):
        check_same_network(settings, run)
    info = replace(model(settings).info, network=theirs.network)  # type: ignore[type-var]
    file = ModelFile(Path("v.safetensors"), {}, info, "model")
    with pytest.raises(UserError, match="with `fasttrain import FILE --network "):
        check_same_network(settings, file)
