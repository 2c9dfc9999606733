"""`pretrain init=`: diffusion training goes on with a model, for other classes too; and the path of
docs/models.md from a model of 1,000 classes to a one-step generator of one's own images."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from fasttrain.checkpoints import checkpoint
from fasttrain.models.build import new_network
from fasttrain.settings import NetworkSettings
from fasttrain.training.objectives.diffusion import edm_loss
from fasttrain_data import convert
from tests.edm_files import write_snapshot
from tests.runs.calling import call
from tests.runs.conftest import BRIEFLY
from tests.small_models import PLAIN, write_model
from tests.tiny import DISCRIMINATOR, NETWORK

DOCS = Path(__file__).parents[2] / "docs" / "models.md"
ADM = {"model_channels": 32, "channel_mult": [1, 2], "num_blocks": 1, "attn_resolutions": [4]}
SMALL = ["network.img_resolution=8", *(f"network.{name}={value}" for name, value in ADM.items())]
BATCH = ["batch=16", "micro_batch=null", BRIEFLY, "sample.count=14", "report_every=16"]
CLASSES = ["badger", "fox", "hare", "lynx", "otter", "owl", "wolf"]


def photos(folder: Path) -> None:
    """Coloured pictures in seven folders."""
    digits = load_digits()
    for label, name in enumerate(CLASSES):
        (folder / name).mkdir(parents=True)
        for number, pixels in enumerate(digits.images[digits.target == label][:12]):
            grey = torch.tensor(pixels * 15.9).to(torch.uint8)
            picture = torch.stack([grey, grey // 2, 255 - grey], dim=2).numpy()
            Image.fromarray(picture).resize((16, 16)).save(folder / name / f"{number}.png")


@pytest.mark.slow
def test_the_documented_path_to_ones_own_images(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    torch.manual_seed(0)
    described = NetworkSettings(
        model_type="DhariwalUNet", img_resolution=8, img_channels=3, label_dim=1000, **ADM
    )
    model = new_network("edm", described)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    file = tmp_path / "edm-imagenet-64x64-cond-adm.pkl"
    write_snapshot(file, model, ADM)
    names = [f"n{number:04}" for number in range(1000)]
    names[281], names[17] = "Lynx", "fox"
    (tmp_path / "imagenet-classes.txt").write_text("\n".join(names))

    text = DOCS.read_text(encoding="utf-8")
    section = text[text.index("## Your own images from a model of others") :]
    commands = re.findall(r"^ {4}(fasttrain.*?)(?:  #.*)?$", section.partition("\n## ")[0], re.M)
    verbs = [shlex.split(command)[:2] for command in commands]
    assert [verb for _, verb in verbs] == ["convert", "pretrain", "finetune", "export"]
    more = {
        "pretrain": [*SMALL, *BATCH, "images=48"],
        "finetune": [*SMALL, *BATCH, *DISCRIMINATOR, "discriminator.norm_group=8", "images=32"],
    }
    for command in commands:
        program, verb, *words = shlex.split(command)
        if program == "fasttrain-data":
            assert words == ["photos", "data/photos64", "--resolution", "64", "--channels", "3"]
            convert("photos", Path("data/photos64"), resolution=8, channels=3)
            continue
        status, _, error = call(capsys, verb, *words, *more.get(verb, []))
        assert status == 0, error
        if verb == "pretrain":
            assert "1,000 classes of the model, 7 here; kept by name: fox, lynx; made anew" in error
            file.unlink()  # a resumed run needs it no more
            longer = [*SMALL, *BATCH, "images=64"]
            status, _, error = call(capsys, verb, *words, *longer)
            assert status == 0, error
            assert "resumed at 48 images" in error

    with safe_open("photos64.safetensors", "pt") as exported:
        about = exported.metadata()
    assert '"label_dim":7' in about["network"]
    assert about["base_source"] == file.name
    assert len(load_file("photos64.safetensors")["model.map_label.weight"][0]) == 7
    card = Path("photos64.safetensors.md").read_text()
    assert file.name in card


def test_the_first_step_starts_from_the_model(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = write_model(tmp_path / "model.safetensors", PLAIN, task="pretrain")
    run = tmp_path / "run"
    network = [*NETWORK, "network.channel_mult=[1, 2]", "network.attn_resolutions=[4]"]
    changes = [*network, *BATCH, "optimizer.rate=1e-12", "images=16", f"data.path={digits}"]
    status, _, error = call(
        capsys, "pretrain", "digits-edm", *changes, f"init={model}", f"run={run}"
    )
    assert status == 0, error
    assert "10 classes, kept by number: the model's have no names" in error
    begun, weights = checkpoint.find(run / "checkpoints").tensors("ema"), load_file(model)
    assert begun
    for name, value in begun.items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-6)
    for file in (run / "checkpoints").glob("step-*/ema.safetensors"):
        file.write_bytes(file.read_bytes()[:-8])
    words = ("pretrain", "digits-edm", *changes, f"init={model}", f"run={run}")
    status, _, error = call(capsys, *words)
    assert status == 0, error
    assert f"begins with {model}" in error  # again, not with random weights
    begun = checkpoint.find(run / "checkpoints").tensors("ema")
    for name, value in begun.items():
        torch.testing.assert_close(value, weights[name], rtol=0, atol=1e-6)


def test_classes_of_a_file_are_kept_by_their_names(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Which is in another order than the data."""
    names = json.dumps([str(number) for number in reversed(range(10))])
    model = write_model(tmp_path / "model.safetensors", PLAIN, task="pretrain", classes=names)
    network = [*NETWORK, "network.channel_mult=[1, 2]", "network.attn_resolutions=[4]"]
    changes = [*network, *BATCH, "optimizer.rate=1e-12", "images=16", f"data.path={digits}"]
    words = ("pretrain", "digits-edm", *changes, f"init={model}", f"run={tmp_path / 'run'}")
    status, _, error = call(capsys, *words)
    assert status == 0, error
    assert "kept by name: 0, 1, 2, 3, 4 and 5 more" in error
    begun = checkpoint.find(tmp_path / "run" / "checkpoints").tensors("ema")
    name = "model.map_label.weight"
    torch.testing.assert_close(begun[name], load_file(model)[name].flip(1), rtol=0, atol=1e-6)


def test_the_loss_has_the_networks_sigma_data(
    digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch
) -> None:
    """EDM's weights undo the preconditioner's, whose data has that deviation."""
    seen: list[float] = []

    def loss(*args: Any, **kwargs: Any) -> torch.Tensor:
        seen.append(kwargs["sigma_data"])
        return edm_loss(*args, **kwargs)

    monkeypatch.setattr("fasttrain.training.pretrain.edm_loss", loss)
    words = [*NETWORK, *BATCH, "images=16", f"data.path={digits}", f"run={tmp_path / 'run'}"]
    words += ["network.prediction.sigma_data=1", "evaluate.every=null"]
    status, _, error = call(capsys, "pretrain", "digits-edm", *words)
    assert status == 0, error
    assert seen == [1.0]


@pytest.mark.parametrize(
    ("network", "task", "changes", "expected"),
    [
        (PLAIN | {"img_channels": 3}, "pretrain", [], "is of images with 3 channels, the recipe's"),
        (PLAIN | {"img_resolution": 16}, "pretrain", [], "is of images of 16 pixels a side"),
        (PLAIN, "finetune", [], "is a one-step generator: `fasttrain pretrain` goes on with a"),
        (PLAIN, "pretrain", ["network.prediction.kind=v"], "is of another network.prediction"),
        (PLAIN, "pretrain", ["init_classes=names.txt"], "names.txt has 2 names, "),
        (PLAIN, "pretrain", ["init_classes=none.txt"], "init_classes: no file "),
        (PLAIN, "pretrain", ["network.model_channels=32"], "does not fit the network"),
    ],
)
def test_another_model_is_refused_in_a_line(
    network: dict[str, object],
    task: str,
    changes: list[str],
    expected: str,
    digits: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("names.txt").write_text("zero\none\n")
    model = write_model(tmp_path / "model.safetensors", network, task=task)
    own = [*NETWORK, "network.channel_mult=[1, 2]", "network.attn_resolutions=[4]"]
    said = [*own, *BATCH, *changes, f"init={model}", f"data.path={digits}", "run=run"]
    status, _, error = call(capsys, "pretrain", "digits-edm", *said)
    assert status == 2
    assert expected in error
    assert len(error.splitlines()) == 1
    assert not Path("run").exists()


def test_names_of_classes_are_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, _, error = call(capsys, "pretrain", "digits-edm", "init_classes=names.txt")
    assert status == 2
    assert "init_classes: names of the classes of what?" in error
