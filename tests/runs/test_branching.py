"""Rates that change when a run is resumed, and runs that branch from others' checkpoints."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import read_stats
from tests.runs.calling import call

SHORT = ["images=128", "checkpoint.every=64", "checkpoint.keep=9", "evaluate.every=null"]


@pytest.fixture(scope="module")
def trunk(quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    from fasttrain.settings import FinetuneSettings
    from fasttrain.settings.recipes import load_settings
    from fasttrain.system.processes import start
    from fasttrain.training.finetune import finetune

    path = tmp_path_factory.mktemp("branching") / "trunk"
    changes = [*quick, *SHORT, f"run={path}"]
    finetune(load_settings("digits-d2o-f", changes, FinetuneSettings), start())
    return path


def weights(run: Path, images: int) -> dict[str, torch.Tensor]:
    return checkpoint.find(run / "checkpoints", str(images)).tensors("generator")


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_branch_with_the_same_settings_is_the_same_run(
    capsys, quick: list[str], trunk: Path, tmp_path: Path
) -> None:
    run = tmp_path / "branch"
    words = [*quick, *SHORT, f"run={run}", f"from={trunk}@64", f"init={tmp_path / 'gone'}"]
    status, _, error = call(capsys, "finetune", "digits-d2o-f", *words)
    assert status == 0, error
    assert "branched from trunk at 64 images" in error
    assert same(weights(run, 128), weights(trunk, 128))
    kept = ("images", "loss/generator", "loss/discriminator")
    rows = [[line.get(name) for name in kept] for line in read_stats(run)]
    assert rows == [[line.get(name) for name in kept] for line in read_stats(trunk)]
    assert checkpoint.find(run / "checkpoints").state["branch"] == {"run": "trunk", "images": 64}


def test_a_branch_goes_on_with_its_own_settings_and_says_what_it_cannot(
    capsys, quick: list[str], trunk: Path, tmp_path: Path
) -> None:
    run = tmp_path / "branch"
    words = [*quick, *SHORT, f"run={run}", f"from={trunk}@64"]
    for change, said in (
        ("freeze=2", "from: "),
        ("discriminator.width=64", "discriminator.width"),
        ("images=64", "set images above"),
        (f"from={trunk}@65", "has no intact checkpoint '65'"),
        ("from=somewhere", "write it as RUN@IMAGES"),
    ):
        status, _, error = call(capsys, "finetune", "digits-d2o-f", *words, change)
        assert status == 2, error
        assert said in error
        assert not checkpoint.steps(run / "checkpoints")
    status, _, error = call(capsys, "finetune", "digits-d2o-f", *words, "generator.rate=1e-2")
    assert status == 0, error
    assert not same(weights(run, 128), weights(trunk, 128))


def test_what_a_state_is_of_is_compared_in_every_training(
    capsys, quick: list[str], tmp_path: Path
) -> None:
    """Of the discriminator beside another objective, too; and `init` is not asked for again."""
    trunk, run = tmp_path / "trunk", tmp_path / "branch"
    beside = [w if not w.startswith(("discriminator.", "r1.")) else f"gan.{w}" for w in quick]
    words = [*beside, "images=32", "checkpoint.every=32", "evaluate.every=null"]
    status, _, error = call(capsys, "score", "digits-dmd-gan", *words, f"run={trunk}")
    assert status == 0, error
    words += [f"run={run}", f"from={trunk}@32", f"init={tmp_path / 'gone'}", "images=64"]
    for change in ("form=sid", "gan.discriminator.width=64", "adapt={kind: lora, rank: 2}"):
        status, _, error = call(capsys, "score", "digits-dmd-gan", *words, change)
        assert (status, "its checkpoint is of another training" in error) == (2, True), error
        assert not run.exists()
    rates = ["gan.discriminator.optimizer.rate=1e-4", "score.rate=1e-4"]
    status, _, error = call(capsys, "score", "digits-dmd-gan", *words, *rates)
    assert status == 0, error
    assert "score.rate" in error


def test_a_branch_whose_checkpoints_are_damaged_is_branched_again(
    capsys, quick: list[str], trunk: Path, tmp_path: Path
) -> None:
    run = tmp_path / "branch"
    words = ["digits-d2o-f", *quick, *SHORT, f"run={run}", f"from={trunk}@64"]
    words += ["checkpoint.every=128"]
    assert call(capsys, "finetune", *words)[0] == 0
    expected = {name: value.clone() for name, value in weights(run, 128).items()}
    for file in (run / "checkpoints").glob("step-*/generator.safetensors"):
        file.write_bytes(file.read_bytes()[:-8])
    status, _, error = call(capsys, "finetune", *words)
    assert status == 0, error
    assert "branched from trunk at 64 images" in error
    assert same(weights(run, 128), expected)


def test_a_resumed_run_may_have_other_rates_and_records_them(
    capsys, quick: list[str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    words = ["digits-d2o-f", *quick, *SHORT, f"run={run}"]
    assert call(capsys, "finetune", *words, "images=64")[0] == 0
    status, _, error = call(capsys, "finetune", *words, "generator.rate=1e-5")
    assert status == 0, error
    assert "generator.rate 0.001 -> 1e-05 from 64 images on" in error
    history = checkpoint.find(run / "checkpoints").state["rates"]
    assert [entry["images"] for entry in history] == [0, 64]
    assert [entry["generator.rate"] for entry in history] == [1e-3, 1e-5]
    assert json.dumps(history[0]["discriminator.optimizer.rate"]) == "0.0005"
    # Said once: the same command again has nothing new to say.
    status, _, error = call(capsys, "finetune", *words, "generator.rate=1e-5", "images=192")
    assert status == 0, error
    assert "->" not in error
