"""Folders of diffusers' that training scripts write, and schedulers that are not known."""

from __future__ import annotations

import inspect
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain.models.files.families.diffusers_folder import (
    DEFAULTS,
    SCHEDULERS,
    read_diffusers,
)
from fasttrain.models.files.families.options import Options
from fasttrain.models.files.importing import import_model
from fasttrain.models.files.model_file import read_model_file
from fasttrain.models.load import load_model
from fasttrain.system.errors import UserError
from tests.model_goldens import folder as goldens
from tests.small_models import diffusers_unet

EPSILON = {"prediction_type": "epsilon", "beta_schedule": "linear"}


def write(folder: Path, value: float, channels: int = 3, out: int = 3, **more: Any) -> None:
    """A small network, all of whose weights are `value`."""
    network = diffusers_unet(in_channels=channels, out_channels=out)
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, value)
    network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | more))


def read(folder: Path, **given: Any) -> Any:
    return read_diffusers(folder, Options(folder, given))


def say(path: Path, **config: Any) -> None:
    """Write a config."""
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(config))


def test_the_average_of_a_training_script_is_taken(tmp_path: Path) -> None:
    write(tmp_path / "unet", 1.0)
    average = {"decay": 0.9999, "inv_gamma": 1.0, "power": 0.75, "optimization_step": 500}
    write(tmp_path / "unet_ema", 2.0, **average)
    for folder in (tmp_path, tmp_path / "unet_ema"):
        found = read(folder, **EPSILON)
        assert all((value == 2).all() for value in found.weights.values())
        assert not set(average) & set(found.network["options"]["config"])


def test_edms_scheduler_of_another_prediction_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "unet", 1.0)
    (tmp_path / "scheduler").mkdir()
    config = tmp_path / "scheduler" / "scheduler_config.json"
    for kind in ("epsilon", "v_prediction"):
        about = {"_class_name": "EDMEulerScheduler", "sigma_data": 0.5, "prediction_type": kind}
        config.write_text(json.dumps(about))
        if kind == "epsilon":
            assert read(tmp_path).network["prediction"]["kind"] == "edm"
        else:
            with pytest.raises(UserError, match="EDMEulerScheduler of v_prediction"):
                read(tmp_path)


@pytest.mark.parametrize("place", ["scheduler", "."])
def test_what_a_scheduler_leaves_out_is_its_classes_default(place: str, tmp_path: Path) -> None:
    """As in ddpm-cifar10-32, whose files are in one folder, and say no `prediction_type`."""
    write(tmp_path / ("unet" if place == "scheduler" else "."), 1.0)
    with pytest.raises(UserError, match="does not say what it predicts"):
        read(tmp_path)
    config = tmp_path / place / "scheduler_config.json"
    say(config, _class_name="DDPMScheduler", beta_end=0.03, trained_betas=None)
    assert read(tmp_path).network["prediction"] == {
        "kind": "epsilon",
        "time": "steps",
        "betas": "linear",
        "steps": 1000,
        "beta_start": 0.0001,
        "beta_end": 0.03,
        "zero_snr": False,
        "learned_variance": False,
    }
    say(config, _class_name="UnCLIPScheduler")
    with pytest.raises(UserError, match="does not say what it predicts"):
        read(tmp_path)
    say(config, _class_name="HeunDiscreteScheduler", **EPSILON)
    with pytest.raises(UserError, match="does not say beta_start"):
        read(tmp_path)


def test_the_defaults_are_those_of_diffusers_classes() -> None:
    diffusers = pytest.importorskip("diffusers")
    expected = DEFAULTS | {"num_train_timesteps": 1000, "beta_start": 0.0001, "beta_end": 0.02}
    for name in SCHEDULERS:
        arguments = inspect.signature(getattr(diffusers, name).__init__).parameters
        assert {key: arguments[key].default for key in expected} == expected, name


def test_other_channels_than_an_images_are_latents(tmp_path: Path) -> None:
    write(tmp_path / "unet", 1.0, channels=4, out=4)
    with pytest.raises(UserError, match="the scale of its latents, for no image has its 4 channel"):
        read(tmp_path, **EPSILON)
    said = read(tmp_path, **EPSILON, scaling_factor=0.5, shift_factor=3).latents
    assert (said.scale, said.bias) == ((0.5,) * 4, (-1.5,) * 4)
    with pytest.raises(UserError, match="scaling_factor=0 is no scale"):
        read(tmp_path, **EPSILON, scaling_factor=0)


@pytest.mark.parametrize(
    ("place", "config", "scale"),
    [
        ("vqvae", {"_class_name": "VQModel"}, 1.0),
        ("vqvae", {"_class_name": "VQModel", "scaling_factor": 0.25}, 0.25),
        ("vae", {"_class_name": "AutoencoderKL"}, 0.18215),
    ],
)
def test_three_channels_beside_an_autoencoder_are_latents(
    place: str, config: dict[str, Any], scale: float, tmp_path: Path
) -> None:
    write(tmp_path / "unet", 1.0)
    assert read(tmp_path, **EPSILON).latents is None
    say(tmp_path / place / "config.json", **config)
    assert read(tmp_path, **EPSILON).latents.scale == (scale,) * 3


def test_a_network_that_sees_another_image_is_refused(tmp_path: Path) -> None:
    write(tmp_path, 1.0, channels=6)
    with pytest.raises(UserError, match="its network takes 6 channels and makes 3, as those do"):
        read(tmp_path, **EPSILON)


def test_no_number_of_output_channels_is_that_of_the_input(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    shutil.copytree(goldens() / "diffusers-dit", tmp_path / "dit")
    place = tmp_path / "dit" / "transformer"
    config = json.loads((place / "config.json").read_text()) | {"out_channels": None}
    torch.manual_seed(0)
    network = diffusers.DiTTransformer2DModel.from_config(config)
    network.save_pretrained(place)
    assert json.loads((place / "config.json").read_text())["out_channels"] is None
    import_model(tmp_path / "dit", tmp_path / "dit.safetensors")
    loaded, _ = load_model(tmp_path / "dit.safetensors")
    x, times, labels = torch.randn(2, 4, 8, 8), torch.tensor([3.0, 500.0]), torch.eye(10)[:2]
    with torch.no_grad():
        expected = network.eval()(x, times, class_labels=torch.arange(2)).sample
        assert torch.equal(loaded.model(x, times, labels), expected)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("layers_per_block", 1 << 70, "layers_per_block is above 1000"),
        ("down_block_types", ["DownBlock2D"] * 2000, "down_block_types is above 1000"),
        ("attention_head_dim", 0, "integer division or modulo by zero"),
    ],
)
def test_odd_settings_are_one_line(name: str, value: object, why: str, tmp_path: Path) -> None:
    types = {"down_block_types": ["AttnDownBlock2D", "DownBlock2D"]}
    write(tmp_path, 1.0, **types | {name: value})
    with pytest.raises(UserError, match=f"describes no network: config: {why}"):
        read_model_file(tmp_path, Options(tmp_path, EPSILON))


@pytest.mark.parametrize("value", ["three", 0, 1 << 40, [3]])
def test_odd_channels_are_one_line(value: object, tmp_path: Path) -> None:
    write(tmp_path, 1.0, in_channels=value)
    with pytest.raises(UserError, match="describes no network: in_channels is") as why:
        read(tmp_path, **EPSILON)
    assert len(str(why.value).splitlines()) == 1
