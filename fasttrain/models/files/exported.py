"""Folders of `fasttrain export --to diffusers`, and of the `save_pretrained` of their pipelines.

exported_info(folder)           # what the network is, where its weights do not say so themselves
"""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from fasttrain.models.files.model_info import ModelInfo, class_names
from fasttrain.settings import NetworkSettings
from fasttrain.system.errors import UserError
from fasttrain.system.files import read_json

__all__ = ["WEIGHTS", "exported_info", "is_exported"]

WEIGHTS = Path("unet", "diffusion_pytorch_model.safetensors")
"""The network's file in such a folder."""
MAX_CONFIG = 1 << 20
"""Bytes."""


def is_exported(path: Path) -> bool:
    """Whether a folder is an exported pipeline, and not a run's directory or another model's."""
    try:
        kind = read_json(path / "unet" / "config.json", MAX_CONFIG).get("_class_name")
    except (OSError, UserError):
        return False
    return kind == "OneStepUNet" and not (path / "config.yaml").exists()


def exported_info(path: Path) -> ModelInfo:
    """The model of a folder, from its configs: diffusers keeps these, and no metadata of weights.

    Raises UserError when they describe none.
    """
    config = read_json(path / "unet" / "config.json", MAX_CONFIG)
    index = read_json(path / "model_index.json", MAX_CONFIG)
    try:
        network = NetworkSettings.model_validate(config.get("network"))
    except ValidationError:
        raise UserError(f"{path} describes no network") from None
    sigma, middle = index.get("sigma"), index.get("sigma_mid")
    if not isinstance(sigma, int | float) or not 0 < sigma < float("inf"):
        raise UserError(f"{path} does not say the noise level of its step")
    if middle is not None and (not isinstance(middle, int | float) or not 0 < middle < sigma):
        raise UserError(f"{path}: the noise level of its second step is not below its first")
    names = class_names(index.get("class_names"), network.label_dim)
    return ModelInfo("finetune", network, float(sigma), path.name, None, None, middle, names)
