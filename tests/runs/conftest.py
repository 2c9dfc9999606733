"""Real shards and a briefly trained diffusion model, shared by the tests of whole runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from fasttrain.discriminator.class_means import store_class_features
from fasttrain.evaluation.lite2 import Lite2
from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start
from fasttrain.training.pretrain import pretrain
from fasttrain_data import convert
from tests.kept import EXTRACTOR
from tests.shared import made_once
from tests.tiny import DISCRIMINATOR, FLOAT32, NETWORK

EVALUATE = "evaluate={samples: 80, components: 8}"
BRIEFLY = "evaluate={samples: 8, components: null}"
"""At the end of each run: eigenvectors of 1280 features would take as long as ten iterations."""
UNJUDGED = "evaluate.every=null"
"""For runs whose losses are compared: the evaluation at the end is as long as an iteration."""


@pytest.fixture(scope="module", autouse=True)
def one_extractor() -> Iterator[None]:
    """Read and folded once for all runs."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lite2, "load", EXTRACTOR)
        yield


@pytest.fixture(scope="session")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the classes' mean features beside them, so that no run has to look at all images first
    (`test_class_features_of_the_whole_data_set` does)."""

    def make(folder: Path) -> None:
        convert("digits", folder / "digits")
        store_class_features(folder / "digits", 32, torch.device("cpu"))

    return made_once(tmp_path_factory, "shards", make) / "digits"


@pytest.fixture(scope="session")
def diffusion(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory of `fasttrain pretrain`, after 6,400 images: one step of
    it shows the mean of a class, not a constant, at whose ties features have no clear gradient."""

    def make(folder: Path) -> None:
        changes = [
            f"run={folder / 'digits-edm'}",
            f"data.path={digits}",
            "images=6400",
            "ema.half_life=500",
            *NETWORK,
            *FLOAT32[:1],
            EVALUATE,
        ]
        pretrain(load_settings("digits-edm", changes, PretrainSettings), start())

    return made_once(tmp_path_factory, "runs", make) / "digits-edm"


@pytest.fixture(scope="session")
def quick(digits: Path, diffusion: Path) -> list[str]:
    """Overrides that make `digits-d2o-f` a matter of seconds; add `run=DIR`. In float32, which the
    tests' tolerances are for, on a GPU too."""
    return [
        f"data.path={digits}",
        f"init={diffusion}",
        *NETWORK,
        *FLOAT32,
        "memory_format=contiguous",
        "batch=32",
        "images=320",
        "discriminator.norm_group=8",
        *DISCRIMINATOR,
        "report_every=32",
        "checkpoint.every=64",
        "r1.interval=4",
        BRIEFLY,
        "sample.count=16",
    ]
