"""The commands as a user types them, on a real small run."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.result import read_result, values_of
from fasttrain.models.load import load_model
from fasttrain.models.networks.unet import first_level
from fasttrain.sampling.generate import generate
from fasttrain.sampling.pictures import grid_image
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start
from fasttrain.training import log as metrics
from fasttrain.training.finetune import finetune
from tests.runs.calling import call
from tests.runs.conftest import EVALUATE
from tests.tiny import DISCRIMINATOR, FLOAT32, NETWORK


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Run a command that must succeed; what it printed."""
    status, out, error = call(capsys, *arguments)
    assert status == 0, error
    return out


@pytest.fixture(scope="module")
def generator(quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished fine-tuning run."""
    path = tmp_path_factory.mktemp("finetune") / "run"
    changes = [*quick, EVALUATE, "sample.every=128", "evaluate.every=128", f"run={path}"]
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
    evaluation = step.state["evaluation"]
    assert evaluation["score"] == evaluation["values"]["fd"] == lines[-1]["fd"]
    assert evaluation["protocol"]["images"] == 80
    assert evaluation["protocol"]["reference"]["size"] == 8
    scores = [s.state["evaluation"] for s in checkpoint.steps(generator / "checkpoints")]
    best = checkpoint.find(generator / "checkpoints", "best").state["evaluation"]
    assert best["score"] == min(found["score"] for found in scores if found)


def test_frozen_weights_stay_those_of_the_diffusion_model(generator: Path, diffusion: Path) -> None:
    before, _ = load_model(diffusion)
    after, _ = load_model(generator)
    audit = json.loads((generator / "audit.json").read_text())
    kept, trained = 0, 0
    after = dict(after.model.named_parameters())
    for name, weight in before.model.named_parameters():
        if first_level(name) == 1:
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
    options = ("--seeds", "7", "--steps", "3", "--class", "7", "--out", heun)
    run(capsys, "sample", diffusion, *options)
    network, _ = load_model(diffusion)
    expected = generate(Sampler("heun", steps=3), network, [7], label=7)
    drawn = np.asarray(Image.open(heun), int)
    assert np.abs(drawn - np.asarray(grid_image(expected), int)).max() <= 1


def test_evaluate_prints_and_keeps_the_numbers(capsys, generator: Path) -> None:
    kept, gone = generator / "evaluation.json", generator / "config.yaml" / "e.json"
    status, _, error = call(capsys, "evaluate", generator, "--out", gone)
    assert (status, f"cannot write {gone}" in error) == (2, True)  # before anything is evaluated
    assert not kept.exists()
    printed = run(capsys, "evaluate", generator)
    elsewhere = generator.parent / "elsewhere.json"
    shown = run(capsys, "evaluate", generator, "--out", elsewhere, "--json")  # the same rows
    one, two = read_result(kept), read_result(elsewhere)
    assert json.loads(shown) == two
    assert one["protocol"] == two["protocol"]
    assert values_of(one, "fd") == values_of(two, "fd")
    fd = values_of(read_result(generator / "evaluation.json"), "fd")
    assert set(fd) == {"real_floor", "teacher_18", "one_step_before", "one_step_after"}
    assert 0 < fd["real_floor"] < min(value for row, value in fd.items() if row != "real_floor")
    for value in fd.values():
        assert f"{value:.3f}" in printed
    assert "lite2" in printed
    told = json.loads(run(capsys, "report", generator, "--json"))
    assert told["report"] == str(generator / "report.html")
    assert (told["training"], told["images"], told["of"]) == ("finetune", 320, 320)
    assert [each["code"] for each in told["metrics"]] == [one["protocol"]["code"]]
    # The loop's last evaluation and this one look at the same weights, seeds and reference.
    assert fd["one_step_after"] == pytest.approx(read_stats(generator)[-1]["fd"], 1e-3)


def test_fdr_is_the_mean_ratio_over_extractors(capsys, generator: Path) -> None:
    printed = run(capsys, "evaluate", generator, "--fdr", "lite2,lite0")
    kept = json.loads((generator / "fdr.json").read_text())
    ratios = {name: row["fd"] / row["floor"] for name, row in kept["extractors"].items()}
    assert list(ratios) == ["lite2", "lite0"]
    assert kept["fdr"] == pytest.approx(sum(ratios.values()) / 2)
    # lite2's are the numbers of the run's own table.
    assert kept["extractors"]["lite2"]["fd"] == pytest.approx(read_stats(generator)[-1]["fd"], 1e-3)
    assert f"{kept['fdr']:.2f}" in printed.splitlines()[-1]
    for words, said in (
        (("--fdr", "lite2,lite9"), "unknown extractor 'lite9'"),
        (("--fdr", ","), "--fdr needs extractors"),
        (("--fdr", "lite2", "--samples", "9"), "leave other options out"),
    ):
        status, _, error = call(capsys, "evaluate", generator, *words)
        assert (status, said in error) == (2, True)


def test_evaluate_a_diffusion_run(capsys, diffusion: Path) -> None:
    run(capsys, "evaluate", diffusion)
    result = read_result(diffusion / "evaluation.json")
    assert set(result["rows"]) == {"real_floor", "teacher_18", "one_step"}


def test_dropout_of_the_base_model_is_off_in_fine_tuning(quick: list[str], tmp_path: Path) -> None:
    """Its draws would depend on the micro-batch; with it off, two and one part agree."""
    lines = []
    for name, micro in (("whole", []), ("parts", ["micro_batch=16"])):
        changes = [*quick, "network.dropout=0.5", "images=32", f"run={tmp_path / name}", *micro]
        finetune(load_settings("digits-d2o-f", changes, FinetuneSettings), start())
        lines.append(read_stats(tmp_path / name)[0])
    assert lines[0]["loss/generator"] == pytest.approx(lines[1]["loss/generator"], rel=1e-5)


def test_uneven_micro_batches_report_means_over_samples() -> None:
    metrics.reset()
    metrics.report("x", torch.tensor([1.0, 1.0, 1.0]), 3)
    metrics.report("x", torch.tensor([5.0]), 1)
    assert metrics.collect(start()) == {"x": 2.0}
    assert metrics.collect(start()) == {}


def test_dry_run_needs_no_data_and_no_weights(capsys, tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = run(capsys, "finetune", "--local_rank", "1", "--dry-run", "digits-d2o-f", "seed=3")
    assert "seed: 3" in printed
    assert "block.conv" in printed
    assert "203,649" in printed
    assert "not ready, 2 to do:" in printed
    assert f"{tmp_path / 'data/digits'}" in printed
    assert f"- no model at {tmp_path / 'runs/digits-edm'}" in printed
    run(capsys, "--local_rank=0", "pretrain", "digits-edm", "--dry-run")
    assert not list(tmp_path.iterdir())


def test_dry_run_says_all_that_is_missing_or_that_it_can_start(
    capsys, quick: list[str], tmp_path, monkeypatch
) -> None:
    monkeypatch.delenv("FASTTRAIN_WEIGHTS", raising=False)
    words = ["finetune", "digits-d2o-f", "--dry-run", *quick, f"run={tmp_path / 'run'}"]
    assert run(capsys, *words).splitlines()[-1] == "ready to start"
    own = [*words, "discriminator.backbones=[{name: self}]", "discriminator.resolutions=[8, 4]"]
    own += ["discriminator.class_embedding=random"]
    assert run(capsys, *own).splitlines()[-1] == "ready to start"  # needs no weights' file
    other = run(capsys, *words, "network.model_channels=32").splitlines()[-1]
    assert "of another network: model_channels is 16 there and 32 here" in other
    lost = ["discriminator.backbones=[{name: vgg16_bn}, {name: deit_base_distilled}]"]
    lost += [f"init={tmp_path / 'gone.pkl'}", "network.label_dim=7", "evaluate={samples: 9999}"]
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.tex").touch()
    lines = run(capsys, *words, *lost).splitlines()
    todo = lines[lines.index("not ready, 6 to do:") + 1 :]
    said = ["not a run directory", "gone.pkl", "set it to 10", "evaluate.samples=9999"]
    for part, line in zip([*said, "vgg16_bn", "deit_base_distilled"], todo, strict=True):
        assert part in line


def test_profile_prints_and_keeps_the_numbers(capsys, tmp_path) -> None:
    out = tmp_path / "profile"
    options = ("--device", "cpu", "--batch", 2, "--iterations", 1, "--out", out)
    changes = (*NETWORK, *DISCRIMINATOR, "discriminator.norm_group=2", *FLOAT32)
    printed = run(capsys, "profile", "digits-d2o-f", *changes, *options)
    result = json.loads((out / "profile.json").read_text())
    assert set(result["columns"]) == {"eager", "library", "ours"}
    assert result["wrong"] == []
    assert result["phases"]["sum_ms"] > 0
    assert "forward G" in printed
    assert json.loads((out / "trace.json").read_text())["traceEvents"]
