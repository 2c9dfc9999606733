"""What a file does not say comes from the user: one line for each thing that is missing or wrong,
and nothing half-written."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fasttrain.models.files.edm_pickle import read_checkpoint
from fasttrain.models.files.model_file import read_model_file
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
        ("scoresde-vp-ddpmpp", None, ["sde=vesde"], "level is positional, of sde=vpsde"),
        ("scoresde-ve-ncsnpp", None, ["sde=vpsde"], "level is fourier, of sde=vesde"),
        ("adm-legacy-cond", None, ["num_heads_upsample=2"], "num_heads_upsample=2 is not known"),
        ("adm-legacy-cond", None, ["scaling_factor=-1"], "scaling_factor=-1 is no scale"),
        ("adm-legacy-cond", None, ["diffusion_steps=0"], "is refused: .*division by zero"),
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
    assert "whether it is DiT or SiT: `fasttrain import` takes family=VALUE (one of" in error


@pytest.mark.parametrize("value", ["-1", "4"])
def test_numbers_are_text_on_a_command_line(
    value: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, out = named("adm-legacy-cond"), tmp_path / "model.safetensors"
    arguments = [*case.arguments(tmp_path / "c.json"), f"num_heads_upsample={value}"]
    status, _, error = call(capsys, "import", *arguments, "num_heads=4", "--out", out)
    assert status == 0, error


def test_the_same_weights_in_safetensors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are told by their names, and a command without `NAME=VALUE`s says which one has them."""
    case, foreign = named("dit-plain"), tmp_path / "dit.safetensors"
    save_file(torch.load(case.model, weights_only=True), foreign)
    made = []
    for number, file in enumerate((case.model, foreign)):
        arguments, out = case.arguments(tmp_path / "c.json"), tmp_path / f"{number}.safetensors"
        status, _, error = call(capsys, "import", file, *arguments[1:], "--out", out)
        assert status == 0, error
        made.append(load_file(out))
    assert made[0].keys() == made[1].keys()
    assert all(torch.equal(made[0][name], value) for name, value in made[1].items())
    status, _, error = call(capsys, "sample", foreign, "--out", tmp_path / "x.png")
    assert status == 2
    assert "whether it is DiT or SiT: `fasttrain import` takes family=VALUE" in error
    save_file({"down_blocks.0.weight": torch.zeros(2)}, foreign)
    status, _, error = call(capsys, "sample", foreign, "--out", tmp_path / "x.png")
    assert status == 2
    assert "a network of diffusers without its config: name the folder it lies in" in error


def weights_of(case: ModelCase) -> dict[str, torch.Tensor]:
    """As a plain state dict."""
    stored = read_checkpoint(case.model).tensors
    return {name: value.tensor() for name, value in stored.items()}


@pytest.mark.parametrize(
    ("name", "weight"),
    [
        ("adm-legacy-cond", "time_embed.2.bias"),
        ("adm-legacy-cond", "input_blocks.1.0.out_layers.3.weight"),
        ("cm-distilled", "out.2.weight"),
        ("dit-plain", "blocks.0.mlp.fc1.weight"),
        ("sit-plain", "final_layer.linear.weight"),
        ("ldm-uncond", "model.diffusion_model.out.0.bias"),
        ("ldm-uncond", "model_ema.diffusion_modelout0bias"),
    ],
)
def test_a_weight_that_is_not_there_is_named(
    name: str, weight: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, path = named(name), tmp_path / "x.pt"
    weights = weights_of(case)
    del weights[weight]
    weights.pop(f"model_ema.{weight.removeprefix('model.').replace('.', '')}", None)
    torch.save(weights, path)
    arguments = case.arguments(tmp_path / "c.json")[1:]
    status, _, error = call(capsys, "import", path, *arguments)
    assert status == 2
    assert len(error.strip().splitlines()) == 1
    short = re.escape(weight.removeprefix("model.diffusion_model."))
    assert re.search(rf"x\.pt is refused: it has no {short}", error), error


@pytest.mark.parametrize(
    ("name", "weight", "shape"),
    [
        ("adm-legacy-cond", "time_embed.0.weight", (3,)),
        ("adm-legacy-cond", "input_blocks.0.0.weight", (3,)),
        ("adm-legacy-cond", "middle_block.1.qkv.weight", (7, 3, 1)),
        ("dit-plain", "x_embedder.proj.weight", ()),
        ("dit-plain", "pos_embed", (3,)),
        ("scoresde-vp-ddpmpp", "all_modules.2.weight", ()),
        ("ldm-uncond", "scale_factor", (2,)),
        ("ldm-uncond", "alphas_cumprod", ()),
    ],
)
def test_a_weight_of_another_shape_is_one_line(
    name: str,
    weight: str,
    shape: tuple[int, ...],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    case, path = named(name), tmp_path / "x.pt"
    torch.save(weights_of(case) | {weight: torch.ones(shape)}, path)
    arguments = case.arguments(tmp_path / "c.json")[1:]
    status, _, error = call(capsys, "import", path, *arguments)
    assert status == 2, error
    assert len(error.strip().splitlines()) == 1
    assert "x.pt" in error
    assert "no memory" not in error


@pytest.mark.parametrize("out", [3, 6])
def test_an_upsampler_is_refused(
    out: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """guided-diffusion's see a smaller image beside the noise: six channels."""
    case, path = named("adm-legacy-cond"), tmp_path / "64_256_upsampler.pt"
    weights = weights_of(case)
    first, last = weights["input_blocks.0.0.weight"], weights["out.2.weight"]
    weights["input_blocks.0.0.weight"] = torch.cat([first, first], dim=1)
    weights |= {"out.2.weight": last[:out], "out.2.bias": weights["out.2.bias"][:out]}
    torch.save(weights, path)
    arguments = case.arguments(tmp_path / "c.json")[1:]
    status, _, error = call(capsys, "import", path, *arguments)
    assert status == 2
    assert "is refused: it is an upsampler, which sees an image, too" in error


def test_latents_of_more_channels_need_their_scale(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    case, path, out = named("dit-plain"), tmp_path / "dit16.pt", tmp_path / "dit.safetensors"
    weights = weights_of(case)
    first, last = weights["x_embedder.proj.weight"], weights["final_layer.linear.weight"]
    weights["x_embedder.proj.weight"] = torch.cat([first] * 4, dim=1)
    weights["final_layer.linear.weight"] = torch.cat([last] * 4)
    weights["final_layer.linear.bias"] = torch.cat([weights["final_layer.linear.bias"]] * 4)
    torch.save(weights, path)
    arguments = [path, *case.arguments(tmp_path / "c.json")[1:], "--out", out]
    status, _, error = call(capsys, "import", *arguments)
    assert status == 2
    assert "the scale of its latents, for no image has its 16 channels" in error
    said = ("scaling_factor=1.5305", "shift_factor=0.0609")
    status, text, error = call(capsys, "import", *arguments, *said)
    assert status == 0, error
    assert "images are made with --vae" in text
    status, _, error = call(capsys, "sample", out, "--out", tmp_path / "x.png")
    assert status == 2
    assert "the model makes latents: name their autoencoder with --vae PATH" in error
    info = read_model_file(out).info
    assert info is not None
    assert info.latents is not None
    assert info.latents.bias == pytest.approx((-1.5305 * 0.0609,) * 16)


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
