"""`import fasttrain as ft`: the commands as functions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fasttrain as ft
from fasttrain.models.load import load_model
from fasttrain.sampling.generate import generate
from fasttrain.sampling.sampler import Sampler
from fasttrain.system.errors import UserError
from tests.runs.calling import call
from tests.small_models import NCSNPP, PLAIN, write_model


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    names = '["sea","3",' + ",".join(f'"c{n}"' for n in range(8)) + "]"
    return write_model(tmp_path_factory.mktemp("model") / "m.safetensors", PLAIN, classes=names)


def test_a_model_makes_the_images_of_the_command_line(capsys, path: Path, tmp_path: Path) -> None:
    model = ft.load(str(path))
    network, info = load_model(path)
    assert torch.equal(model.sample(range(5)), generate(Sampler.of(info), network, range(5)))
    assert model.classes[0] == "sea"
    sea = generate(Sampler.of(info), network, [7], label=0)
    assert torch.equal(model.sample([7], classes="sea"), sea)
    assert torch.equal(model.sample([7], classes=0), sea)
    three = generate(Sampler.of(info), network, [7], label=1)
    assert torch.equal(model.sample([7], classes="3"), three)  # a name before a number
    each = model.sample([7, 7], classes=["sea", 3])
    assert torch.allclose(each[0], sea[0], atol=2e-6)
    assert not torch.allclose(each[1], three[0], atol=1e-2)
    assert model.sample([]).shape == (0, 1, 8, 8)
    model.grid(tmp_path / "a.png", range(4))
    assert call(capsys, "sample", path, "--seeds", "0-3", "--out", tmp_path / "b.png")[0] == 0
    a, b = (np.asarray(Image.open(tmp_path / name), int) for name in ("a.png", "b.png"))
    assert np.abs(a - b).max() <= 1
    for wrong in ("lake", 10, -1, [1, 2]):
        with pytest.raises(UserError):
            model.sample([7], classes=wrong)
    with pytest.raises(UserError, match="no classes"):
        ft.load(write_model(tmp_path / "u.safetensors", NCSNPP)).sample([1], classes=0)
    with pytest.raises(UserError, match="no model at"):
        ft.load(tmp_path / "nothing")
    model.export(tmp_path / "again.safetensors")
    assert ft.load(tmp_path / "again.safetensors").classes == model.classes


def test_from_a_recipe_to_an_evaluated_generator(quick: list[str], tmp_path: Path) -> None:
    settings = ft.recipe("digits-d2o-f", *quick, run=str(tmp_path / "run"), images=32)
    assert settings.images == 32
    model = ft.finetune(settings)
    assert model.info.images == 32
    assert model.classes == tuple("0123456789")
    result = ft.evaluate(model)
    assert set(result["rows"]) >= {"real_floor", "one_step_after"}
    out = tmp_path / "r.json"
    few = ft.evaluate(model, settings.data.path, samples=32, metrics=("kd",), out=out)
    assert list(few["rows"]["model"]["metrics"]) == ["kd"]
    assert out.is_file()
    ft.finetune(settings.model_copy(update={"images": 64}))
    assert ft.load(settings.run).info.images == 64
    still = ft.evaluate(model, settings.data.path, samples=32, metrics=("kd",), out=out)
    weights = few["rows"]["model"]["weights"]
    assert still["rows"]["model"]["weights"] == weights  # of what was loaded, not of the latest
    with pytest.raises(UserError, match="did you mean images"):
        ft.recipe("digits-edm", image=3)


@pytest.mark.slow
def test_importing_it_imports_no_torch() -> None:
    code = (
        "import sys, fasttrain as ft; print('torch' in sys.modules, 'pydantic' in sys.modules);"
        "dir(ft); assert not hasattr(ft, 'nothing'); print(ft.load.__name__, ft.__all__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[0] == "False False"
    assert done.stdout.splitlines()[1].startswith("load [")
