"""MeanFlow, and the class ratio, in whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain.analysis.report.page import write_report
from fasttrain.checkpoints.saved import SavedRun
from fasttrain.checkpoints.stats import read_stats
from fasttrain.models.load import load_base_model, load_model
from fasttrain.sampling.generate import generate
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.settings.registry import load
from fasttrain.settings.trainings import TRAININGS
from fasttrain.system.errors import UserError
from fasttrain.system.processes import start, stop
from fasttrain.training.finetune import finetune
from tests.shared import task_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def brief(quick: list[str]) -> list[str]:
    """Of `quick`, what a training without a discriminator has."""
    return [change for change in quick if not change.startswith(("discriminator.", "r1."))]


def run(recipe: str, path: Path, *changes: str) -> list[dict[str, Any]]:
    task = task_of(recipe)
    settings = load_settings(recipe, [*changes, f"run={path}"], TRAININGS[task].schema)
    try:
        load(f"fasttrain.training.{task}:{task}")(settings, start())
    finally:
        stop()
    wanted = ("images", "loss/", "ratio/", "gradient/")
    return [{k: v for k, v in line.items() if k.startswith(wanted)} for line in read_stats(path)]


@pytest.mark.parametrize(
    ("recipe", "losses", "said"),
    [
        ("digits-meanflow", {"loss/velocity"}, "one-step generator by its average velocity"),
        ("digits-ratio", {"loss/classifier", "loss/score", "ratio/real"}, "by its score (ratio)"),
    ],
)
def test_each_is_split_and_resumed_like_any_run(
    recipe: str, losses: set[str], said: str, brief: list[str], tmp_path: Path
) -> None:
    changes = [*brief, "images=96"]
    whole = run(recipe, tmp_path / "whole", *changes)
    assert all(losses <= set(line) for line in whole)
    assert run(recipe, tmp_path / "cut", *changes, "images=64") == whole[:2]
    assert run(recipe, tmp_path / "cut", *changes) == whole
    parts = run(recipe, tmp_path / "parts", *changes, "images=32", "micro_batch=16")
    assert parts[0] == pytest.approx(whole[0], rel=1e-3, abs=1e-4)
    assert said in write_report(tmp_path / "whole").read_text()


def test_what_meanflow_makes_is_an_ordinary_generator(
    quick: list[str], brief: list[str], tmp_path: Path
) -> None:
    """It has the base model's tensors and no others, its own images, and can be fine-tuned."""
    run("digits-meanflow", tmp_path / "first", *brief, "images=64", "generator.rate=1e-2")
    saved = SavedRun.open(tmp_path / "first")
    network, before = load_model(saved)[0], load_base_model(saved, "one_step")
    assert network.state_dict().keys() == before.state_dict().keys()
    assert any(".second." in name for name in saved.weights)
    made, wanted = (generate(Sampler(), model, range(8)) for model in (network, before))
    assert (made - wanted).abs().max() > 1e-3
    changes = [*quick, f"init={tmp_path / 'first'}", "images=32", f"run={tmp_path / 'second'}"]
    finetune(load_settings("digits-d2o-f", changes, FinetuneSettings), start())
    begun = load_base_model(SavedRun.open(tmp_path / "second"), "one_step")
    assert torch.equal(generate(Sampler(), begun, range(8)), made)


def test_a_network_without_a_second_time_leaves_nothing_behind(
    brief: list[str], diffusion: Path, tmp_path: Path
) -> None:
    edm2 = "network={model_type: EDM2UNet, img_resolution: 8, img_channels: 1, label_dim: 10, "
    edm2 += "model_channels: 16, channel_mult: [1, 2], num_blocks: 1, attn_resolutions: [4], "
    edm2 += "options: {channels_per_head: 16}}"
    small = [change for change in brief if not change.startswith("network.")]
    with pytest.raises(UserError, match="EDM2UNet does not say where it takes a second time"):
        run("digits-meanflow", tmp_path / "run", *small, edm2)
    assert not (tmp_path / "run").exists()
