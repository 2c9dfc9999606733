"""The commands as a user types them, on a real small run."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fasttrain import checkpoint
from fasttrain.cli import main
from fasttrain.config import FinetuneSettings, load_settings
from fasttrain.distributed import start
from fasttrain.finetune import finetune
from fasttrain.freezing import is_frozen
from fasttrain.metrics import read_stats
from fasttrain.models import load_run


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must succeed; what it printed."""
    before = sys.argv
    sys.argv = ["fasttrain", *map(str, arguments)]
    try:
        with pytest.raises(SystemExit) as ended:
            main()
    finally:
        sys.argv = before
    captured = capsys.readouterr()
    assert ended.value.code in (0, None), captured.err
    return captured.out


@pytest.fixture(scope="module")
def generator(quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fine-tuning run."""
    path = tmp_path_factory.mktemp("finetune") / "run"
    changes = [*quick, "sample.every=128", "evaluate.every=128", f"run={path}"]
    finetune(load_settings("digits-d2o-f", changes, FinetuneSettings), start())
    return path


def test_a_run_directory_holds_what_it_promises(generator: Path) -> None:
    settings = load_settings(str(generator / "config.yaml"), [], FinetuneSettings)
    assert settings.images == 320
    lines = read_stats(generator)
    assert [line["images"] for line in lines] == list(range(32, 321, 32))
    assert [line["images"] for line in lines if "fd" in line] == [128, 256, 320]
    assert [line["images"] for line in lines if "loss/r1" in line] == [160, 288]  # 5th, 9th
    pictures = sorted(path.stem.lstrip("0") for path in (generator / "samples").glob("*.png"))
    assert pictures == ["128", "256", "320"]
    assert any((generator / "tensorboard").iterdir())
    step = checkpoint.find(generator / "checkpoints")
    assert step.images == 320
    assert step.state["fd"] == lines[-1]["fd"]
    assert checkpoint.find(generator / "checkpoints", "best").state["fd"] == min(
        s.state["fd"] for s in checkpoint.steps(generator / "checkpoints") if s.state["fd"]
    )


def test_frozen_weights_stay_those_of_the_diffusion_model(generator: Path, diffusion: Path) -> None:
    before, _ = load_run(diffusion)
    after, _ = load_run(generator)
    audit = json.loads((generator / "audit.json").read_text())
    kept, trained = 0, 0
    after = dict(after.model.named_parameters())
    for name, weight in before.model.named_parameters():
        if is_frozen(name, 1):
            assert torch.equal(weight, after[name]), name
            kept += weight.numel()
        else:
            assert not torch.equal(weight, after[name]), name
            trained += weight.numel()
    assert trained == audit["trainable"]
    assert kept == audit["parameters"] - audit["trainable"]


def test_finishing_twice_changes_nothing(generator: Path, quick: list[str]) -> None:
    before = checkpoint.find(generator / "checkpoints").tensors("generator")
    settings = load_settings(str(generator / "config.yaml"), [], FinetuneSettings)
    finetune(settings, start())
    after = checkpoint.find(generator / "checkpoints").tensors("generator")
    assert all(torch.equal(before[key], after[key]) for key in before)
    assert len(read_stats(generator)) == 10


def test_sample_draws_the_same_image_for_a_seed_in_any_batch(
    capsys, generator, diffusion, tmp_path
) -> None:
    many, one, heun = (tmp_path / f"{name}.png" for name in ("many", "one", "heun"))
    run(capsys, "sample", generator, "--seeds", "0-8", "--out", many)
    run(capsys, "sample", generator, "--seeds", "4", "--out", one)
    grid, alone = np.asarray(Image.open(many), int), np.asarray(Image.open(one), int)
    size = grid.shape[0] // 3
    tile = grid[size : 2 * size, size : 2 * size]
    inner = alone[-size:, -size:] if alone.shape != tile.shape else alone
    assert tile.std() > 0
    assert np.abs(tile - inner).max() <= 1
    run(
        capsys, "sample", diffusion, "--seeds", "1,3", "--steps", "3", "--class", "7", "--out", heun
    )
    assert Image.open(heun).size[0] > 0
    assert not np.array_equal(np.asarray(Image.open(heun)).ravel()[:9], grid.ravel()[:9])


def test_evaluate_prints_and_keeps_the_numbers(capsys, generator: Path) -> None:
    printed = run(capsys, "evaluate", generator)
    result = json.loads((generator / "evaluation.json").read_text())
    assert set(result["fd"]) == {"real_floor", "teacher_18", "one_step_before", "one_step_after"}
    assert (
        0
        < result["fd"]["real_floor"]
        < min(value for row, value in result["fd"].items() if row != "real_floor")
    )
    for value in result["fd"].values():
        assert f"{value:.3f}" in printed
    assert "lite2" in printed
    # The loop's last evaluation and this one look at the same weights, seeds and reference.
    assert result["fd"]["one_step_after"] == pytest.approx(read_stats(generator)[-1]["fd"], 1e-3)


def test_evaluate_a_diffusion_run(capsys, diffusion: Path) -> None:
    run(capsys, "evaluate", diffusion)
    result = json.loads((diffusion / "evaluation.json").read_text())
    assert set(result["fd"]) == {"real_floor", "teacher_18", "one_step"}


def test_dry_run_needs_no_data_and_no_weights(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = run(capsys, "finetune", "--local_rank", "1", "--dry-run", "digits-d2o-f", "seed=3")
    assert "seed: 3" in printed
    assert "block.conv" in printed
    assert "203,649" in printed
    run(capsys, "--local_rank=0", "pretrain", "digits-edm", "--dry-run")
    assert not list(tmp_path.iterdir())
