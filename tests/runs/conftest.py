"""Real shards and a briefly trained diffusion model, shared by the tests of whole runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttrain.config import load_settings
from fasttrain.distributed import start
from fasttrain.pretrain import pretrain
from fasttrain.settings import PretrainSettings
from fasttrain_data import convert

NETWORK = ["network.model_channels=16", "network.num_blocks=1"]
"""A narrower network than the recipes', to keep whole runs short."""
EVALUATE = "evaluate={samples: 80, components: 8}"


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("shards") / "digits"
    convert("digits", path)
    return path


@pytest.fixture(scope="session")
def diffusion(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of `fasttrain pretrain`, after 6,400 images: one step of
    it shows the mean of a class, not a constant, at whose ties features have no clear gradient."""
    run = tmp_path_factory.mktemp("runs") / "digits-edm"
    changes = [
        f"run={run}",
        f"data.path={digits}",
        "images=6400",
        "ema.half_life=500",
        *NETWORK,
        EVALUATE,
    ]
    pretrain(load_settings("digits-edm", changes, PretrainSettings), start())
    return run


@pytest.fixture(scope="session")
def quick(digits: Path, diffusion: Path) -> list[str]:
    """Overrides that make `digits-d2o-f` a matter of seconds; add `run=DIR`. In float32, which the
    tests' tolerances are for, on a GPU too."""
    return [
        f"data.path={digits}",
        f"init={diffusion}",
        *NETWORK,
        "precision=float32",
        "memory_format=contiguous",
        "discriminator.precision=float32",
        "batch=32",
        "images=320",
        "discriminator.norm_group=8",
        "discriminator.backbones=[{name: lite0, resolution: 32}]",
        "discriminator.resolutions=[32, 16]",
        "discriminator.width=32",
        "discriminator.channels=8",
        "report_every=32",
        "checkpoint.every=64",
        "r1.interval=4",
        EVALUATE,
        "sample.count=16",
    ]
