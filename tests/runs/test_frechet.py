"""The Frechet objective in whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain.analysis.report.page import write_report
from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.extractors import load_extractor
from fasttrain.settings import FrechetSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start, stop
from fasttrain.training.frechet import frechet
from tests.runs.calling import call
from tests.runs.conftest import UNJUDGED

pytestmark = pytest.mark.slow

JUDGES = ["judges=[{extractor: lite0, resolution: 32}]", "half_life=100"]
EVALUATED = "evaluate.every=32"


@pytest.fixture(scope="module")
def brief(quick: list[str]) -> list[str]:
    """Of `quick`, what this training has."""
    kept = [change for change in quick if not change.startswith(("discriminator.", "r1."))]
    return [*kept, *JUDGES, UNJUDGED]


def run(path: Path, *changes: str, recipe: str = "digits-fd-f") -> list[dict[str, Any]]:
    settings = load_settings(recipe, [*changes, f"run={path}"], FrechetSettings)
    try:
        frechet(settings, start())
    finally:
        stop()
    return [
        {k: v for k, v in line.items() if k.startswith(("images", "loss/", "gradient/"))}
        for line in read_stats(path)
    ]


def test_it_learns_and_is_split_and_resumed_like_any_run(brief: list[str], tmp_path: Path) -> None:
    whole = run(tmp_path / "whole", *brief)
    distances = [line["loss/lite0-32"] for line in whole]
    assert sum(distances[-3:]) < 0.9 * sum(distances[:3])
    assert run(tmp_path / "cut", *brief, "images=128") == whole[:4]
    assert run(tmp_path / "cut", *brief) == whole
    parts = run(tmp_path / "parts", *brief, "images=96", "micro_batch=8")
    for ours, expected in zip(parts, whole, strict=False):
        assert ours == pytest.approx(expected, rel=1e-2)
    newest = checkpoint.newest(tmp_path / "whole" / "checkpoints")
    assert newest is not None
    kept = newest.tensors("judges")
    assert kept["lite0-32/second"].dtype == torch.float64
    assert int(kept["lite0-32/images"]) == 320
    page = write_report(tmp_path / "whole").read_text()
    assert "Frechet distances of the judges" in page


def test_beside_the_gan_and_by_classes_it_is_split_and_resumed_like_any_run(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    beside_gan = [
        f"gan.{change}" if change.startswith(("discriminator.", "r1.")) else change
        for change in quick
    ]
    changes = [*beside_gan, *JUDGES, UNJUDGED, "images=96", "gan.reuse_fakes=true"]
    whole = run(tmp_path / "whole", *changes, recipe="digits-fd-gan")
    assert all({"loss/lite0-32", "loss/generator", "loss/discriminator"} <= set(w) for w in whole)
    assert run(tmp_path / "cut", *changes, "images=64", recipe="digits-fd-gan") == whole[:2]
    assert run(tmp_path / "cut", *changes, recipe="digits-fd-gan") == whole
    parts = run(tmp_path / "parts", *changes, "images=32", "micro_batch=16", recipe="digits-fd-gan")
    assert parts[0] == pytest.approx(whole[0], rel=1e-3, abs=1e-4)
    newest = checkpoint.newest(tmp_path / "whole" / "checkpoints")
    assert newest is not None
    assert newest.tensors("judges")["lite0-32/mean"].shape == (496 + 10,)
    said = write_report(tmp_path / "whole").read_text()
    assert "by the Frechet distance of features (lite0-32) beside the GAN objective" in said
    stored = "judges=[{extractor: lite0, statistics: real.npz}]"
    status, _, err = call(capsys, "frechet", "digits-fd-gan", *changes, stored, "run=wrong")
    assert status == 2
    assert "class_length: a file of statistics has no classes" in err


def test_statistics_of_a_file_are_those_of_the_data(
    brief: list[str],
    digits: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "real.npz"
    status, _, _ = call(capsys, "reference-stats", digits, "--out", out, "--extractor", "lite0")
    assert status == 0
    own = run(tmp_path / "own", *brief, "images=32", "judges=[{extractor: lite0}]")
    monkeypatch.chdir(tmp_path)
    stored = "judges=[{extractor: lite0, statistics: real.npz}]"
    of_file = run(tmp_path / "file", *brief, "images=32", stored)
    assert of_file[0]["loss/lite0"] == pytest.approx(own[0]["loss/lite0"], rel=1e-3)
    wrong = stored.replace("statistics", "resolution: 32, statistics")
    words = ["frechet", "digits-fd-f", *brief, wrong, f"run={tmp_path / 'wrong'}"]
    status, _, err = call(capsys, *words)
    assert status == 2
    assert "has other features" in err
    weights = "judges=[{extractor: inception, weights: nowhere}]"
    status, _, err = call(capsys, "frechet", "digits-fd-f", *brief, weights, "run=wrong")
    assert status == 2
    assert str(tmp_path / "nowhere") in err
    assert not (tmp_path / "wrong").exists()


def test_a_judge_that_evaluates_is_warned_of(brief: list[str], tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="what was optimised"):
        run(tmp_path / "run", *brief, "images=32", EVALUATED, "judges=[{extractor: lite2}]")


def test_lite0_pools_the_maps_of_the_backbone() -> None:
    extractor = load_extractor("lite0")
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    levels = ((images + 1) * 127.5).round() / 127.5 - 1
    maps = extractor.network(levels)
    expected = torch.cat([x.mean((2, 3)) for x in maps], 1)
    torch.testing.assert_close(extractor(images), expected)
    assert extractor.width == expected.shape[1] == 496
