"""`fasttrain export` of model files."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fasttrain.models.export import export_model
from fasttrain.models.export.card import model_card
from fasttrain.models.files.model_file import ModelInfo
from fasttrain.settings import FinetuneSettings, NetworkSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from tests.runs.calling import call
from tests.small_models import NCSNPP, PLAIN, write_model


def test_of_a_file_little_is_known_and_no_more_is_said(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model.safetensors", NCSNPP, task="pretrain")
    export_model(model, tmp_path / "out.safetensors")
    card = (tmp_path / "out.safetensors.md").read_text()
    assert "A diffusion model for images of 8x8, 3 channels, no classes" in card
    assert "unknown: ask the source of the base model" in card
    assert "not recorded in the model's file" in card


def test_a_diffusion_model_is_tagged_as_none_of_one_step(tmp_path: Path) -> None:
    tags = []
    for number, said in enumerate(({"task": "pretrain"}, {}, {"sigma_mid": "0.8"})):
        model = write_model(tmp_path / f"{number}.safetensors", PLAIN, **said)
        tags.append(yaml.safe_load(card_of(tmp_path, model).split("---")[1])["tags"])
    assert tags == [
        ["image-generation", "fasttrain"],
        ["image-generation", "one-step-generation", "fasttrain"],
        ["image-generation", "two-step-generation", "fasttrain"],
    ]


def test_only_settings_that_the_network_has_are_told() -> None:
    options = {"hidden_size": 32, "depth": 2, "num_heads": 2}
    dit = NetworkSettings(model_type="DiT", img_resolution=8, img_channels=3, options=options)
    card = model_card(ModelInfo("pretrain", dit, None, "dit"), {}, "safetensors", "x")
    assert "| network | DiT |" in card
    unet = model_card(ModelInfo("finetune", NetworkSettings(**PLAIN), 80.0, "x"), {}, "onnx", "x")
    assert "| network | SongUNet, 16 channels |" in unet


def test_a_model_trained_from_scratch_has_no_base_models_licence() -> None:
    scratch = load_settings("digits-edm", [], PretrainSettings)
    continued = load_settings("digits-edm", ["init=model.pkl"], PretrainSettings)
    tuned = load_settings("digits-d2o-f", [], FinetuneSettings)
    cards = [
        model_card(
            ModelInfo(settings.task, settings.network, sigma, "run", settings=settings),
            said,
            "safetensors",
            "x.safetensors",
        )
        for settings, sigma, said in (
            (scratch, None, {}),
            (scratch, None, {"base_licence": "MIT"}),
            (continued, None, {}),
            (tuned, 80.0, {}),
        )
    ]
    assert "Trained from scratch: no base model's licence applies." in cards[0]
    assert "license" not in yaml.safe_load(cards[0].split("---")[1])
    assert yaml.safe_load(cards[1].split("---")[1])["license"] == "mit"
    for card in cards[2:]:
        assert "unknown: ask the source of the base model" in card


def card_of(tmp_path: Path, model: Path, **options: str) -> str:
    export_model(model, tmp_path / "out.safetensors", **options)  # type: ignore[arg-type]
    return (tmp_path / "out.safetensors.md").read_text()


def test_foreign_text_makes_no_rows_headings_or_tags(tmp_path: Path) -> None:
    said = {"origin": "x |\n\n## Licence\n\nMIT <script>", "base_licence": "mine\n# yours"}
    model = write_model(tmp_path / "model.safetensors", PLAIN, **said)
    card = card_of(tmp_path, model)
    assert "| imported from | x \\| ## Licence MIT &lt;script> |" in card
    assert "derive from: mine # yours." in card
    assert [line for line in card.splitlines() if line.startswith("#")] == [
        "# model.safetensors",
        "## Use",
        "## Recipe",
        "## Numbers",
        "## Licence",
    ]


@pytest.mark.parametrize(
    ("data", "told"),
    [
        ("https://host/images/set?X-Signature=secret", "set"),
        ("https://user:secret@host/", "a server's root folder"),
        ("simplecache::s3://user:secret@bucket/digits/", "digits"),
        ("/home/secret/digits", "digits"),
    ],
)
def test_the_card_tells_no_secrets_of_a_url(data: str, told: str) -> None:
    settings = load_settings("digits-d2o-f", [f"data.path={data}"], FinetuneSettings)
    info = ModelInfo("finetune", settings.network, 80.0, "run", settings=settings)
    card = model_card(info, {}, "onnx", "x.onnx")
    assert f"| data | {told} |" in card
    assert "secret" not in card
    assert "host" not in card


def test_mistakes(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    model = write_model(tmp_path / "edm.safetensors", PLAIN, task="pretrain")
    for to in ("diffusers", "onnx"):
        with pytest.raises(UserError, match="fine-tune it first"):
            export_model(model, tmp_path / "x", to=to)  # type: ignore[arg-type]
    status, _, error = call(capsys, "export", model, "--to", "tensorflow")
    assert (status, error) == (
        2,
        "fasttrain: error: --to tensorflow: choose one of safetensors, diffusers, onnx, hub\n",
    )
    with pytest.raises(UserError, match="is a folder: name the file"):
        export_model(model, tmp_path)
    with pytest.raises(UserError, match="is named as a model card is"):
        export_model(model, tmp_path / "gen.md")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["edm.safetensors"]
