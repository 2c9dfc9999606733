"""Whole runs with a reward, against a discriminator that trains the diffusion model in it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import read_stats
from fasttrain.data import RealImages
from fasttrain.discriminator.projected import TRAINED
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune
from fasttrain.training.objectives.reward import new_reward

pytestmark = pytest.mark.slow

REWARD = "reward={weight: 0.2, features: {name: lite0, resolution: 32}}"
SELF = "discriminator.backbones=[{name: self, train: true}]"
APPROXIMATED = "r1={kind: approximated}"


def run(path: Path, *changes: str) -> list[dict[str, float]]:
    finetune(load_settings("digits-d2o-f", [*changes, f"run={path}"], FinetuneSettings), start())
    wanted = ("loss/", "gradient/")
    return [{k: v for k, v in line.items() if k.startswith(wanted)} for line in read_stats(path)]


def test_it_is_split_and_resumed_like_any_run(quick: list[str], tmp_path: Path) -> None:
    changes = [*quick, REWARD, SELF, APPROXIMATED, "discriminator.resolutions=[8, 4]"]
    changes += ["discriminator.class_embedding=random", "checkpoint.every=32"]
    whole = run(tmp_path / "whole", *changes, "images=64")
    assert all(line["loss/reward"] > 0 for line in whole)
    assert run(tmp_path / "cut", *changes, "images=32") == whole[:1]
    assert run(tmp_path / "cut", *changes, "images=64") == whole
    parts = run(tmp_path / "parts", *changes, "images=32", "micro_batch=16")
    assert parts[0] == pytest.approx(whole[0], rel=1e-3)
    early, late = (
        checkpoint.find(tmp_path / name / "checkpoints").tensors("discriminator")
        for name in ("parts", "whole")
    )
    moved = [n for n in late if n.startswith(f"module/{TRAINED}.") and n.endswith("weight")]
    assert moved
    assert not any(torch.equal(early[name], late[name]) for name in moved)


def test_the_reward_knows_the_classes_of_real_digits(quick: list[str]) -> None:
    settings = load_settings("digits-d2o-f", [*quick, REWARD, "run=unused"], FinetuneSettings)
    reward = new_reward(settings, start().device)
    assert reward is not None
    batch = RealImages.of_run(settings, seed=1).take(256)
    assert batch.class_labels is not None
    own = reward(batch.images, batch.class_labels)
    assert (own.exp() > 0.5).float().mean() > 0.9


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["discriminator.backbones=[{name: lite0, train: true}]"], "lite0 stays frozen"),
        ([SELF], "set r1.kind=approximated"),
        ([SELF, APPROXIMATED, "graphs=true"], "only heads are captured"),
        (["reward={weight: 1.0, name: own_clas}"], "own_class"),
    ],
)
def test_what_does_not_go_together_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_settings("digits-d2o-f", changes, FinetuneSettings)
