"""A run that its stop rule ends: in the terminal, the statistics, the report, on resume."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fasttrain.analysis.report.page import write_report
from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import TIMES, read_stats
from fasttrain.training.average import Average
from tests.runs.calling import call

SCORES = {32: 50.0, 64: 40.0, 96: 45.0, 128: 41.0, 160: 30.0}


@pytest.fixture
def scored(monkeypatch: pytest.MonkeyPatch) -> None:
    """Evaluations with the constructed scores."""
    images: list[int] = []
    save_grid = Average.save_grid

    def noted(self: Average, network: Any, path: Path) -> None:
        images.append(int(path.stem))
        save_grid(self, network, path)

    def evaluate(self: Average, network: Any) -> dict[str, Any]:
        score = SCORES[images[-1]]
        return {"metric": "fd", "score": score, "values": {"fd": score}, "protocol": {"n": 1}}

    monkeypatch.setattr(Average, "save_grid", noted)
    monkeypatch.setattr(Average, "evaluate", evaluate)


def lines(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_stats(run)]


def test_an_evaluation_that_fails_costs_no_iteration(
    quick: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The checkpoint that was due is written without it, and the same command goes on."""

    def fails(self: Average, network: Any) -> dict[str, Any]:
        raise OSError(5, "Input/output error", "shard-000003.tar")

    words = [*quick, f"run={tmp_path / 'run'}", "images=64", "checkpoint.every=64"]
    with monkeypatch.context() as patch:
        patch.setattr(Average, "evaluate", fails)
        status, _, error = call(capsys, "finetune", "digits-d2o-f", *words, "evaluate.every=64")
    assert (status, "Input/output error" in error) == (75, True)
    (step,) = checkpoint.steps(tmp_path / "run/checkpoints")
    assert (step.images, step.state["evaluation"]) == (64, None)
    assert step.state["owed"] == ["draw", "evaluate"]

    with monkeypatch.context() as patch:  # it is tried first, and fails again
        patch.setattr(Average, "evaluate", fails)
        assert call(capsys, "finetune", "digits-d2o-f", *words, "evaluate.every=64")[0] == 75
    assert call(capsys, "finetune", "digits-d2o-f", *words, "evaluate.every=64")[0] == 0
    (step,) = checkpoint.steps(tmp_path / "run/checkpoints")
    assert (step.images, "owed" in step.state) == (64, False)
    assert step.state["evaluation"]["values"]["fd"] == lines(tmp_path / "run")[-1]["fd"]
    assert call(capsys, "finetune", "digits-d2o-f", *words, "images=96")[0] == 0


def test_a_run_ends_early_and_resumes_alike(
    quick: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], scored: None
) -> None:
    run, cut = tmp_path / "run", tmp_path / "cut"
    every = ["sample.every=32", "evaluate.every=32", "checkpoint.keep=1", "r1.gamma=0"]
    words = ["finetune", "digits-d2o-f", *quick, *every, "stop.patience=2"]
    status, _, err = call(capsys, *words, f"run={run}")
    assert status == 0
    sentence = (
        "fd has not improved for 2 evaluations; its best, 40, is that of the checkpoint at 64"
    )
    assert f"stopped early: {sentence}" in err
    assert f"fasttrain evaluate {run} --checkpoint best" in err
    assert [line["images"] for line in lines(run)] == [32, 64, 96, 128]
    assert [line["since_best"] for line in lines(run)] == [0, 0, 1, 2]
    assert lines(run)[-1]["stopped_early"] == 1
    assert [step.images for step in checkpoint.steps(run / "checkpoints")] == [64, 128]
    page = " ".join(write_report(run).read_text().split())
    assert f"stopped early: {sentence}" in page
    # The same command again: nothing is left to do.
    status, _, err = call(capsys, *words, f"run={run}")
    assert status == 0
    assert f"stopped early: {sentence}" in err
    assert "resumed" not in err
    # Cut in two after the first evaluation without improvement, it ends at the same image.
    call(capsys, *words, f"run={cut}", "images=96")
    call(capsys, *words, f"run={cut}")
    assert lines(cut) == lines(run)
    # More patience: it goes on, and improves.
    longer = shutil.copytree(run, tmp_path / "longer")
    status, _, err = call(capsys, *words, f"run={longer}", "stop.patience=3", "images=160")
    assert status == 0
    assert "stopped early" not in err
    assert lines(longer)[-1]["since_best"] == 0
