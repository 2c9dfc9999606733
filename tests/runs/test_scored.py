"""Score distillation beside the GAN objective in whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fasttrain.analysis.report.page import write_report
from fasttrain.checkpoints.stats import read_stats
from fasttrain.settings import ScoreSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start, stop
from fasttrain.training.score import score
from tests.runs.conftest import UNJUDGED

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def beside_gan(quick: list[str]) -> list[str]:
    return [
        change if not change.startswith(("discriminator.", "r1.")) else f"gan.{change}"
        for change in quick
    ]


def run(path: Path, *changes: str) -> list[dict[str, Any]]:
    settings = load_settings("digits-dmd-gan", [*changes, UNJUDGED, f"run={path}"], ScoreSettings)
    try:
        score(settings, start())
    finally:
        stop()
    wanted = ("images", "loss/", "logits/", "gradient/")
    return [{k: v for k, v in line.items() if k.startswith(wanted)} for line in read_stats(path)]


def test_it_is_split_and_resumed_like_any_run(beside_gan: list[str], tmp_path: Path) -> None:
    changes = [*beside_gan, "images=96", "generator_every=2", "gan.reuse_fakes=true"]
    whole = run(tmp_path / "whole", *changes)
    # The generator's steps are the first and the third; the other networks have one in each.
    assert ["gradient/generator" in line for line in whole] == [True, False, True]
    assert all({"loss/denoising", "gradient/score", "logits/real"} <= set(line) for line in whole)
    assert run(tmp_path / "cut", *changes, "images=64") == whole[:2]
    assert run(tmp_path / "cut", *changes) == whole
    parts = run(tmp_path / "parts", *changes, "images=32", "micro_batch=16")
    # Losses and gradients before any update: Adam's first steps are signs of gradients.
    assert parts[0] == pytest.approx(whole[0], rel=1e-3, abs=1e-4)
    page = write_report(tmp_path / "whole").read_text()
    assert "distilled into a one-step generator by its score (dmd beside the GAN objective)" in page
