"""`fasttrain export` of a run: weights that come back as they were, and what its card says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from fasttrain.checkpoints import checkpoint
from fasttrain.evaluation.kept import card_quality
from fasttrain.models.export import export_model
from fasttrain.models.load import load_model
from fasttrain.sampling.generate import generate
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.files import sha256
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune


@pytest.fixture(scope="module")
def run(quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A two-step generator, in bfloat16, so that its frozen weights are not its base model's."""
    path = tmp_path_factory.mktemp("exported") / "run"
    changes = ["images=64", "sigma_mid=0.8", "precision=bfloat16", f"run={path}"]
    finetune(load_settings("digits-d2o-f", [*quick, *changes], FinetuneSettings), start())
    return path


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def metadata_of(path: Path) -> dict[str, str]:
    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def test_weights_come_back_bit_by_bit(
    run: Path,
    quick: list[str],
    tmp_path: Path,
) -> None:
    network, own = load_model(run)
    said = export_model(run, tmp_path / "one.safetensors", base_licence="mine")
    assert said.splitlines()[0] == f"weights: {tmp_path / 'one.safetensors'}"
    back, info = load_model(tmp_path / "one.safetensors")
    assert same(back.state_dict(), network.state_dict())
    assert info.network == own.network
    assert (info.sigma, info.sigma_mid, info.images) == (80.0, 0.8, 64)
    assert torch.equal(
        generate(Sampler.of(info), back, range(6)), generate(Sampler.of(own), network, range(6))
    )
    # From file to file: the same, with what it says of its origin.
    export_model(tmp_path / "one.safetensors", tmp_path / "two.safetensors")
    one, two = tmp_path / "one.safetensors", tmp_path / "two.safetensors"
    assert same(load_file(one), load_file(two))
    assert metadata_of(one) == metadata_of(two)
    # And a run that begins with it has exactly these weights.
    again = tmp_path / "again"
    changes = [f"init={tmp_path / 'one.safetensors'}", "images=32", f"run={again}"]
    finetune(load_settings("digits-d2o-f", [*quick, *changes], FinetuneSettings), start())
    assert same(checkpoint.Step(again, 0).tensors("base"), network.state_dict())
    export_model(again, tmp_path / "three.safetensors")
    assert metadata_of(tmp_path / "three.safetensors")["base_licence"] == "mine"


def test_the_card_says_what_is_known(run: Path, tmp_path: Path) -> None:
    data = checkpoint.find(run / "checkpoints").state["data"]["content_sha256"]
    out = tmp_path / "generator.safetensors"
    export_model(run, out, base_licence="CC BY-NC-SA 4.0")
    card = Path(f"{out}.md").read_text()
    for part in ("two-step generator", "8x8, grey, 10 classes", "D2O-F", data, "digits-edm", "64"):
        assert part in card, part
    assert "derive from: CC BY-NC-SA 4.0." in card
    assert "None: it has not been evaluated." in card
    assert str(run.parent) not in card  # nothing of this machine
    metadata = metadata_of(out)
    assert metadata["data_sha256"] == data
    assert metadata["base_sha256"] == sha256(run / "base.safetensors")
    assert metadata["base_licence"] == "CC BY-NC-SA 4.0"


def test_the_cards_numbers_are_those_of_this_checkpoint(run: Path, tmp_path: Path) -> None:
    rows = {"real_floor": 14.25, "one_step_after": 40.5}
    found = {
        "fd": rows,
        "kd": {"real_floor": 0.5, "one_step_after": 2.0},
        "protocol": {"extractor": "lite2", "images": 80, "images_seen": 64, "reference": "/x/y"},
        "seconds": 3.0,
    }
    path = run / "evaluation.json"
    try:
        path.write_text(json.dumps(found))
        export_model(run, tmp_path / "a.safetensors", quality=card_quality(run, 64))
        card = (tmp_path / "a.safetensors.md").read_text()
        assert "| one step after | 40.5 | 2 |" in card
        assert "extractor lite2, images 80" in card
        assert "/x/y" not in card
        found["protocol"]["images_seen"] = 32  # type: ignore[index]
        path.write_text(json.dumps(found))
        export_model(run, tmp_path / "b.safetensors", quality=card_quality(run, 64))
        assert "None of this checkpoint" in (tmp_path / "b.safetensors.md").read_text()
    finally:
        path.unlink()
