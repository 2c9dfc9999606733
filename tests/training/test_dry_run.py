"""`--dry-run` refuses what the start of each training refuses of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fasttrain.models.build import new_network
from fasttrain.models.files.model_file import ModelInfo
from fasttrain.settings import NetworkSettings
from fasttrain.settings.recipes import load_settings, written
from fasttrain.settings.trainings import TRAININGS
from fasttrain.system.processes import ONE_PROCESS
from fasttrain.system.tensors import write_tensors
from fasttrain.training.base_model import load_init
from fasttrain.training.dry_run import missing
from fasttrain_data import convert

NETWORK = {
    "img_resolution": 8,
    "img_channels": 1,
    "label_dim": 10,
    "model_channels": 8,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (),
}
DIGITS = tuple(map(str, range(10)))


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "digits"
    convert("digits", path)
    return path


@pytest.fixture
def model(tmp_path: Path) -> Any:
    def write(*classes: str, task: str = "pretrain", **network: Any) -> Path:
        settings = NetworkSettings(**NETWORK | network)
        sigma = 80.0 if task == "finetune" else None
        info = ModelInfo(task, settings, sigma, "model", classes=classes)
        weights = new_network("edm" if sigma is None else "one_step", settings).state_dict()
        write_tensors(tmp_path / "model.safetensors", weights, info.metadata())
        return tmp_path / "model.safetensors"

    return write


def settings_of(recipe: str, data: Path, init: Path, *words: str) -> Any:
    task = written(recipe, []).values["task"]
    small = [f"{name}={list(value) if isinstance(value, tuple) else value}"
             for name, value in ((f"network.{n}", v) for n, v in NETWORK.items())]  # fmt: skip
    changes = [f"data.path={data}", f"init={init}", f"run={init.parent / 'run'}", *small, *words]
    return load_settings(recipe, changes, TRAININGS[task].schema)


def said(*words: Any) -> tuple[list[str], list[str]]:
    """What is missing, and the notes."""
    notes: list[str] = []
    return missing(settings_of(*words), notes), notes


RANDOM = "gan.discriminator.backbones=[{name: vgg16_bn, resolution: 32}]"


@pytest.mark.parametrize(
    ("recipe", "words", "refusal"),
    [
        ("digits-d2o-f", ["network.label_dim=7"], "label_dim is 10 there and 7 here"),
        ("digits-d2o-f", ["network.num_blocks=2"], "num_blocks is 1 there and 2 here"),
        ("digits-d2o-f", ["network.attn_resolutions=[4]"], "does not fit the network: it has no"),
        ("digits-d2o-f", ["discriminator.class_embedding=nowhere.st"], "nowhere.st cannot be read"),
        ("digits-d2o-f", ["network.model_type=DhariwalUNet"], "model_type is SongUNet there"),
        ("digits-cd", ["distance=features", "features={name: vgg16_bn}"], "vgg16_bn"),
        ("digits-cd-gan", [RANDOM], "vgg16_bn"),
        ("digits-dmd-gan", [RANDOM], "vgg16_bn"),
        ("digits-fd-f", ["judges=[{extractor: inception}]"], "inception"),
        ("digits-fd-f", ["judges=[{extractor: lite0, statistics: no.npz}]"], "no.npz"),
        ("digits-d2o-f", ["latents={vae: nowhere}", "evaluate.every=null"], "holds images, and"),
        ("digits-edm", ["network.img_channels=3"], "channels"),
    ],
)
def test_refusals(
    recipe: str,
    words: list[str],
    refusal: str,
    digits: Path,
    model: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("FASTTRAIN_WEIGHTS", raising=False)
    lines, _ = said(recipe, digits, model(*DIGITS), *words)
    assert any(refusal in line for line in lines), lines


def test_classes_of_a_model(digits: Path, model: Any, capsys) -> None:
    assert said("digits-d2o-f", digits, model(*DIGITS)) == ([], [])
    lines, _ = said("digits-d2o-f", digits, model(*reversed(DIGITS)))
    assert "class 0 is number 0 of the data and 9 of" in lines[0]
    _, (note,) = said("digits-d2o-f", digits, model(*"abc", *DIGITS[3:]))
    assert note == (
        "classes of other names are taken by number: 0 begins as a, 1 begins as b, 2 begins as c"
    )
    _, (note,) = said("digits-d2o-f", digits, model(*"abcdefghij"))
    assert note.endswith("4 begins as e, and 5 more")
    _, (note,) = said("digits-d2o-f", digits, model())
    assert "no names known here" in note
    settings = settings_of("digits-d2o-f", digits, model(*"abcdefghij"))
    load_init(settings, new_network("one_step", settings.network), ONE_PROCESS)
    said_at_start = capsys.readouterr().err
    assert f"begins with {settings.init}: classes of other names are taken by" in said_at_start


def test_a_generator_is_no_start_of_pre_training(digits: Path, model: Any) -> None:
    (line,), _ = said("digits-edm", digits, model(task="finetune"))
    assert "is a one-step generator" in line
    lines, (note,) = said("digits-edm", digits, model(*DIGITS))
    assert lines == []
    assert note == "10 classes of the model, 10 here; kept by name: 0, 1, 2, 3, 4 and 5 more"


def test_a_run_directory_that_cannot_be_made(digits: Path, model: Any, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    run = f"run={tmp_path / 'file' / 'run'}"
    (line,), _ = said("digits-d2o-f", digits, model(*DIGITS), run)
    assert line.endswith(f"{tmp_path / 'file'} is no folder")


def test_an_evaluation_that_takes_long_is_said(digits: Path, model: Any, monkeypatch) -> None:
    monkeypatch.setattr("fasttrain.training.dry_run.USUAL", 100)
    _, (note,) = said("digits-d2o-f", digits, model(*DIGITS), "evaluate.samples=300")
    assert note.startswith("evaluate.samples=300: all pairs are compared, on the CPU of process 0")
    assert "takes 9 times as long as 100 would" in note
    quiet = ["evaluate.samples=300", "evaluate.every=null"]
    assert said("digits-d2o-f", digits, model(*DIGITS), *quiet) == ([], [])
