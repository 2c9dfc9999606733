"""What a file does not say comes from the user: one line for each thing that is missing or wrong,
and nothing half-written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.model_goldens import ModelCase, cases
from tests.runs.calling import call

CASES = {case.name: case for case in cases()}


def named(name: str) -> ModelCase:
    if name not in CASES:
        pytest.skip(f"no case {name} in this folder")
    return CASES[name]


@pytest.mark.parametrize(
    ("name", "without", "said", "why"),
    [
        ("adm-legacy-cond", "image_size", [], "does not say the size of its images"),
        ("adm-legacy-cond", "noise_schedule", [], "does not say its noise schedule"),
        ("adm-legacy-cond", "use_new_attention_order", [], "the order of its attention's rows"),
        ("adm-legacy-cond", None, ["num_heds=4"], "num_heds: .* did you mean num_heads"),
        ("adm-legacy-cond", None, ["image_size=eight"], "image_size=eight: it must be a whole"),
        ("adm-legacy-cond", None, ["num_head_channels=7"], "do not split into heads of 7"),
        ("adm-legacy-cond", None, ["noise_schedule=sine"], "must be one of linear, cosine"),
        ("adm-legacy-cond", None, ["image_size"], "write it as NAME=VALUE"),
        ("adm-legacy-cond", None, ["--sigma", "2.5"], "add --one-step"),
        ("cm-distilled", "training_mode", [], "whether it is a diffusion model"),
        ("scoresde-vp-ddpmpp", "data", [], "does not say the size of its images"),
        ("scoresde-vp-ddpmpp", None, ["resblock_type=ddpm"], "only blocks of the kind biggan"),
        ("dit-plain", "model", [], "does not say the heads of its attention"),
        ("dit-plain", None, ["num_heads=5"], "does not split into 5 heads"),
        ("sit-plain", None, ["path_type=GVP"], "only SiT's linear path is"),
        ("ldm-uncond", "params", [], "does not say"),
        ("edm-ve-ncsnpp", None, ["num_heads=4"], "has no such option"),
    ],
)
def test_what_is_missing_or_wrong_is_said(
    name: str,
    without: str | None,
    said: list[str],
    why: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case, config, out = named(name), tmp_path / "config.json", tmp_path / "model.safetensors"
    arguments = case.arguments(config)
    values = {key: value for key, value in case.about["config"].items() if key != without}
    config.write_text(json.dumps(values))
    status, _, error = call(capsys, "import", *arguments, *said, "--out", out)
    assert status == 2
    assert len(error.strip().splitlines()) == 1
    assert re.search(why, error), error
    assert not out.exists()


def test_a_family_must_be_told_from_its_twin(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case = named("dit-plain")
    out = tmp_path / "model.safetensors"
    status, _, error = call(capsys, "import", case.model, "num_heads=4", "--out", out)
    assert status == 2
    assert "whether it is DiT or SiT: give family=VALUE (one of dit, sit)" in error


OTHERS: dict[str, tuple[dict[str, Any], str]] = {
    "text-to-image": (
        {"model.diffusion_model.input_blocks.0.0.weight": 0, "cond_stage_model.x": 0},
        "it is conditioned on text",
    ),
    "k-diffusion": ({"inner_model.proj.weight": 0}, "a model of k-diffusion"),
    "StyleGAN": ({"synthesis.b4.const": 0}, "a GAN of the StyleGAN family"),
    "diffusers without a config": ({"down_blocks.0.weight": 0}, "name the folder"),
    "an autoencoder": ({"encoder.down.0.weight": 0}, "it is an autoencoder"),
    "ADM without blocks": (
        {"input_blocks.0.0.weight": 0, "time_embed.0.weight": 0, "x.qkv.weight": 0},
        "does not say|blocks",
    ),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_refused_by_what_they_are(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names, why = OTHERS[name]
    path, out = tmp_path / "model.pt", tmp_path / "model.safetensors"
    torch.save({key: torch.zeros(2, 2) for key in names}, path)
    status, _, error = call(capsys, "import", path, "--out", out)
    assert status == 2
    assert re.search(why, error), error
    assert len(error.strip().splitlines()) == 1
    assert not out.exists()


@pytest.mark.parametrize("wrapper", ["module.", "_orig_mod.", "ema.", "module._orig_mod."])
def test_wrappers_of_names_are_taken_off(
    wrapper: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """An average beside raw weights is what is taken."""
    case = named("dit-plain")
    plain, wrapped = tmp_path / "plain.safetensors", tmp_path / "wrapped.safetensors"
    arguments = case.arguments(tmp_path / "config.json")
    assert call(capsys, "import", *arguments, "--out", plain)[0] == 0
    weights = torch.load(case.model, weights_only=True)
    raw = {f"model.{n}": w + 1 for n, w in weights.items()} if wrapper == "ema." else {}
    torch.save({wrapper + n: w for n, w in weights.items()} | raw, tmp_path / "w.pt")
    arguments[0] = str(tmp_path / "w.pt")
    status, _, error = call(capsys, "import", *arguments, "--out", wrapped)
    assert status == 0, error
    first, second = load_file(plain), load_file(wrapped)
    assert all(torch.equal(first[name], value) for name, value in second.items())
