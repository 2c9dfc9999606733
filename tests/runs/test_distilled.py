"""Distillation in whole runs: every method, alone and beside the GAN objective."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fasttrain.analysis.report.page import write_report
from fasttrain.checkpoints.saved import SavedRun
from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.result import values_of
from fasttrain.evaluation.summary import evaluate_run
from fasttrain.models.load import load_base_model, load_model
from fasttrain.sampling.generate import generate
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import DistillSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start, stop
from fasttrain.training.distill import distill
from tests.runs.calling import call
from tests.runs.conftest import UNJUDGED

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def brief(quick: list[str]) -> list[str]:
    """Of `quick`, what a distillation has."""
    return [change for change in quick if not change.startswith(("discriminator.", "r1."))]


@pytest.fixture(scope="module")
def beside_gan(quick: list[str]) -> list[str]:
    return [
        change if not change.startswith(("discriminator.", "r1.")) else f"gan.{change}"
        for change in quick
    ]


def run(path: Path, *changes: str, recipe: str = "digits-cd") -> list[dict[str, Any]]:
    settings = load_settings(recipe, [*changes, UNJUDGED, f"run={path}"], DistillSettings)
    try:
        distill(settings, start())
    finally:
        stop()
    wanted = ("images", "loss/", "logits/", "gradient/")
    return [{k: v for k, v in line.items() if k.startswith(wanted)} for line in read_stats(path)]


@pytest.mark.parametrize("method", ["pd", "cd", "ctm", "rcd"])
def test_every_method_learns(method: str, brief: list[str], tmp_path: Path) -> None:
    """Its images come closer to those that the teacher makes of the same latents in eight steps.
    (Its loss need not fall: targets of `pd` move with the student.)"""
    run(tmp_path / "run", *brief, f"method={method}", "levels=8", "images=640")
    saved = SavedRun.open(tmp_path / "run")
    wanted = generate(Sampler("heun", steps=8), load_base_model(saved, "edm"), range(64))
    before, after = (
        (generate(Sampler(), student, range(64)) - wanted).square().mean().item()
        for student in (load_base_model(saved, "one_step"), load_model(saved)[0])
    )
    assert after < 0.9 * before


def test_it_is_split_and_resumed_like_any_run(
    beside_gan: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [*beside_gan, "method=pd", "levels=8", "images=96", "gan.weight=0.5"]
    changes += ["distance=features", "features={name: lite0, resolution: 32}"]
    whole = run(tmp_path / "whole", *changes, recipe="digits-cd-gan")
    assert all({"loss/distillation", "loss/generator", "logits/real"} <= set(w) for w in whole)
    assert run(tmp_path / "cut", *changes, "images=64", recipe="digits-cd-gan") == whole[:2]
    assert run(tmp_path / "cut", *changes, recipe="digits-cd-gan") == whole
    assert not any("fd" in line for line in read_stats(tmp_path / "whole"))  # evaluate.every: null
    parts = run(tmp_path / "parts", *changes, "micro_batch=16", recipe="digits-cd-gan")
    # The first iteration: losses and gradients before any update. With nothing frozen, Adam's first
    # steps are signs of gradients, which make of rounding what no tolerance should allow for.
    assert parts[0] == pytest.approx(whole[0], rel=1e-3, abs=1e-4)
    fd = values_of(evaluate_run(tmp_path / "whole"), "fd")
    assert set(fd) == {"real_floor", "teacher_18", "one_step_before", "one_step_after"}
    page = write_report(tmp_path / "whole").read_text()
    assert "distilled into a one-step generator (pd beside the GAN objective)" in page
    assert "Distillation loss" in page
    status, out, _ = call(capsys, "distill", "digits-cd", *changes[:3], "run=none", "--dry-run")
    assert status == 0
    assert "method: cd" in out
