"""Pre-training with EDM's augmentation, and fine-tuning from it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import read_stats
from fasttrain.models.build import new_network
from fasttrain.models.load import load_model
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune
from fasttrain.training.pretrain import pretrain
from tests.tiny import FLOAT32

AUGMENTED = ["augment=0.5", "network.augment_dim=9", "images=192", "report_every=64"]
AUGMENTED += FLOAT32[:1]


def test_augmented_pre_training_and_fine_tuning_from_it(
    quick: list[str], digits: Path, tmp_path: Path
) -> None:
    def trained(name: str, *changes: str) -> Path:
        overrides = [
            *quick[:1],
            *quick[2:4],
            *AUGMENTED,
            *FLOAT32[:1],
            *changes,
            f"run={tmp_path / name}",
        ]
        pretrain(load_settings("digits-edm", overrides, PretrainSettings), start())
        return tmp_path / name

    whole, parts = trained("whole"), trained("parts", "micro_batch=32")
    plain = trained("plain", "augment=0.0")
    first = [read_stats(run)[0]["loss/denoising"] for run in (whole, parts, plain)]
    assert first[0] == pytest.approx(first[1], rel=1e-5)
    assert first[0] != pytest.approx(first[2], rel=1e-3)
    name = "model.map_augment.weight"
    before, after = (load_model(run)[0].state_dict() for run in (plain, whole))
    assert after[name].shape[1] == 9
    settings = load_model(whole)[1].settings
    assert settings is not None
    torch.manual_seed(settings.seed)
    fresh = new_network("edm", settings.network).state_dict()[name]
    assert torch.equal(before[name], fresh)  # no image had labels
    assert not torch.equal(after[name], fresh)

    run = tmp_path / "tuned"
    changes = [*quick, f"init={whole}", "images=32", f"run={run}"]
    finetune(load_settings("digits-d2o-f", changes, FinetuneSettings), start())
    base = checkpoint.Step(run, 0).tensors("base")
    assert name not in base
    assert name not in load_model(run)[0].state_dict()
    del after[name]
    assert base.keys() == after.keys()
    assert all(torch.equal(base[key], after[key]) for key in base)


def test_augmentation_must_be_told() -> None:
    with pytest.raises(UserError, match=r"set network\.augment_dim=9"):
        load_settings("digits-edm", ["augment=0.1"], PretrainSettings)
