"""Checkpoints of a fine-tuning run hold what trains; the rest lies once in the run directory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fasttrain.checkpoints import checkpoint
from fasttrain.data.cursor import fresh_order
from fasttrain.models.build import new_network
from fasttrain.models.load import load_model, open_model
from fasttrain.models.networks.unet import first_level
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.files import sha256
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune
from tests.runs.calling import call


@pytest.fixture(scope="module")
def run(quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("delta") / "run"
    finetune(
        load_settings(
            "digits-d2o-f",
            [*quick, "images=64", "precision=bfloat16", f"run={path}"],
            FinetuneSettings,
        ),
        start(),
    )
    return path


def test_a_checkpoint_holds_what_trains_and_names_the_rest(run: Path, diffusion: Path) -> None:
    step = checkpoint.find(run / "checkpoints")
    held = {k.partition("/")[2] for k in step.tensors("generator") if "/" in k}
    base = load_file(run / "base.safetensors")
    trained = {name for name in base if first_level(name) != 1}
    assert held == trained | {name for name in base if name.endswith("resample_filter")}
    assert step.tensors("ema").keys() < trained
    assert step.state["base"] == {
        "sha256": sha256(run / "base.safetensors"),
        "frozen": "bfloat16",
    }
    original = open_model(diffusion).weights
    assert base.keys() == original.keys()
    assert all(torch.equal(base[name], original[name]) for name in base)


def test_exported_weights_are_the_averages_on_top_of_the_base(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "weights" / "generator.safetensors"
    status, said, error = call(capsys, "export", run, "--out", out)
    assert (status, said.splitlines()[0]) == (0, f"weights: {out}"), error
    exported = load_file(out)
    average = checkpoint.find(run / "checkpoints").tensors("ema")
    base = load_file(run / "base.safetensors")
    assert exported.keys() == base.keys()
    for name, value in exported.items():
        if first_level(name) == 1:  # as the generator that was trained saw them
            assert torch.equal(value, base[name].bfloat16().float()), name
        elif name in average:
            assert torch.equal(value, average[name]), name
            assert value.dtype == torch.float32
    with safe_open(out, "pt") as file:
        metadata = file.metadata()
    settings = load_model(run)[1].settings
    assert settings is not None
    assert json.loads(metadata["network"]) == json.loads(settings.network.model_dump_json())
    assert (metadata["images"], metadata["sigma"]) == ("64", "80.0")
    network = new_network("one_step", settings.network)
    network.load_state_dict(exported)  # and it is a base model like any other
    x = torch.randn(2, 1, 8, 8)
    labels = torch.eye(10)[:2]
    with torch.no_grad():
        assert torch.equal(network.eval()(x, 80.0, labels), load_model(run)[0](x, 80.0, labels))


def test_a_run_is_read_without_the_model_that_it_came_from(
    run: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    text = (moved / "config.yaml").read_text()
    settings = load_model(run)[1].settings
    assert isinstance(settings, FinetuneSettings)
    (moved / "config.yaml").write_text(text.replace(str(settings.init), str(tmp_path / "gone")))
    status, said, error = call(capsys, "evaluate", moved)
    assert status == 0, error
    assert "diffusion model, 18 Heun steps" in said
    with (moved / "base.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x55")
    status, _, error = call(capsys, "sample", moved, "--out", tmp_path / "grid.png")
    assert status == 2
    assert "base.safetensors is missing or damaged" in error
    assert len(error.splitlines()) == 1


def test_a_fresh_order_begins_an_epoch_that_no_stream_has_begun() -> None:
    cursor = {
        "batches": 7,
        "seed": 1,
        "streams": {"0": {"epoch": 2, "position": 5}, "1": {"epoch": 3, "position": 0}},
        "content_sha256": "x",
    }
    assert fresh_order(cursor, 9) == {
        "batches": 7,
        "seed": 9,
        "streams": {"0": {"epoch": 4, "position": 0}, "1": {"epoch": 4, "position": 0}},
        "content_sha256": "x",
    }
