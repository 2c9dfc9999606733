"""Small models in files, random Inception weights, and real digits as shards and as a folder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.datasets import load_digits

from fasttrain.models.build import new_network
from fasttrain.models.features.inception import InceptionV3
from fasttrain.models.files.model_file import ModelInfo
from fasttrain.settings import NetworkSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.tensors import write_tensors
from fasttrain_data import convert
from tests.analysis.report.support import SMALL, fabricate


def write_model(path: Path, task: str, resolution: int = 8) -> Path:
    """An untrained network, as `fasttrain export` writes one."""
    network = NetworkSettings(
        img_resolution=resolution,
        img_channels=1,
        label_dim=10,
        model_channels=8,
        channel_mult=(1, 2),
        num_blocks=1,
        attn_resolutions=(),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = new_network("one_step" if task == "finetune" else "edm", network)
        with torch.no_grad():
            for parameter in model.parameters():  # the last layer starts at almost nothing
                parameter.add_(0.1 * torch.randn_like(parameter))
    info = ModelInfo(task, network, 80.0 if task == "finetune" else None, path.name, images=64)
    write_tensors(path, model.state_dict(), info.metadata())
    return path


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "generator.safetensors", "finetune")


@pytest.fixture(scope="session")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model") / "edm.safetensors", "pretrain")


@pytest.fixture(scope="session")
def inception_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights by the published names, as pytorch-fid's file holds them."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = InceptionV3().state_dict()
    path = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(weights, path)
    return path


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The first 150 digits as PNG files."""
    path = tmp_path_factory.mktemp("images") / "photos"
    path.mkdir()
    for number, image in enumerate(load_digits().images[:150]):
        pixels = (image * 255 / 16).round().astype("uint8")
        Image.fromarray(pixels).save(path / f"{number:04d}.png")
    return path


@pytest.fixture(scope="session")
def shards(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder's images in shards of 40."""
    path = tmp_path_factory.mktemp("shards") / "photos"
    convert(str(folder), path, images_per_shard=40)
    return path


@pytest.fixture
def run(shards: Path, tmp_path: Path) -> Path:
    """Of an untrained diffusion model."""
    evaluate = "evaluate={samples: 70, batch: 64}"
    changes = [f"data.path={shards}", f"run={tmp_path / 'run'}", *SMALL, evaluate]
    settings = load_settings("digits-edm", changes, PretrainSettings)
    fabricate(settings, 1)
    return settings.run
