"""Folders of diffusers' that training scripts write, and schedulers that are not known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain.models.files.families.diffusers_folder import read_diffusers
from fasttrain.models.files.families.options import Options
from fasttrain.system.errors import UserError

EPSILON = {"prediction_type": "epsilon", "beta_schedule": "linear"}


def write(folder: Path, value: float, **more: Any) -> None:
    """A small network, all of whose weights are `value`."""
    network = pytest.importorskip("diffusers").UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 8),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    )
    for parameter in network.parameters():
        torch.nn.init.constant_(parameter, value)
    network.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | more))


def read(folder: Path, **given: Any) -> Any:
    return read_diffusers(folder, Options(folder, given))


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
