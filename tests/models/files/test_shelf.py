"""The models that come with the package: every file is what its card says, and makes images as good
as it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fasttrain.models.files import shelf
from fasttrain.models.files.shelf import describe, path_of, put_on_shelf, read_shelf
from fasttrain.models.load import load_model, open_model
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.settings.registry import SHELF
from fasttrain.system.errors import UserError
from tests.shelf import DISTANCES, REFERENCES, checked_distance

NAMES = list(SHELF)


def test_all_together_are_small() -> None:
    files = list(shelf.FOLDER.glob("*.safetensors"))
    assert {file.stem for file in files} == set(NAMES)
    assert sum(file.stat().st_size for file in files) <= 8e6


@pytest.mark.parametrize("name", NAMES)
def test_the_card_has_the_numbers_of_the_file(name: str) -> None:
    entry = describe(name)
    card = path_of(name).with_suffix(".md").read_text()
    assert f"{entry.numbers['fd']:.5g}" in card
    assert entry.numbers["protocol"] in card
    assert entry.licence in card


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_its_images_are_as_near_to_real_ones_as_it_says(name: str) -> None:
    reference = REFERENCES / f"{describe(name).numbers['reference']}.npz"
    distance = checked_distance(read_shelf(name), reference)
    assert distance == pytest.approx(json.loads(DISTANCES.read_text())[name], rel=0.01)


def test_a_name_is_a_model_unless_something_lies_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = ("fashion-mnist-cpu-d2o-f", ["init=fashion-mnist-edm"], FinetuneSettings)
    assert str(load_settings(*recipe).init) == "fashion-mnist-edm"
    assert open_model(Path("fashion-mnist-edm")).path == path_of("fashion-mnist-edm")
    Path("fashion-mnist-edm").write_bytes(b"no model")
    assert load_settings(*recipe).init == tmp_path / "fashion-mnist-edm"
    with pytest.raises(UserError, match="not a safetensors file"):
        open_model(Path("fashion-mnist-edm"))


def test_a_generator_is_stored_as_what_trained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It needs the very file that has the rest."""
    base = path_of("fashion-mnist-edm")
    network, info = load_model(Path("fashion-mnist-edm"))
    weights = {name: value.clone() for name, value in network.state_dict().items()}
    weights["model.dec.28x28_aux_conv.bias"] += 1
    monkeypatch.setattr(shelf, "FOLDER", tmp_path)
    (tmp_path / base.name).write_bytes(base.read_bytes())
    about = info.metadata() | {"base_licence": "MIT", "task": "finetune", "sigma": "80.0"}
    stored = put_on_shelf("fashion-mnist", weights, about, {}, "fashion-mnist-edm")
    assert stored.stat().st_size < 6000
    again, _ = load_model(Path("fashion-mnist"))
    for name, value in again.state_dict().items():
        assert torch.equal(value, weights[name].bfloat16().float()), name
    with base.open("rb") as file:
        (tmp_path / base.name).write_bytes(file.read()[:-1] + b"\1")
    with pytest.raises(UserError, match="is damaged"):
        read_shelf("fashion-mnist")


def test_other_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(UserError, match="no model named fashion: choose one of fashion-mnist, "):
        read_shelf("fashion")
