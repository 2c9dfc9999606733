"""Every family's genuine files: F, D, one step and decoded latents as its code computes them."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.models.files.importing import import_model
from fasttrain.models.files.model_file import ModelInfo, read_model_file
from fasttrain.models.files.vae import decode, first_stage, load_vae
from fasttrain.models.load import load_model
from fasttrain.models.networks.prediction import Prediction
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings.schedules import END
from tests.model_goldens import ModelCase, cases


@pytest.fixture(scope="module", params=cases(), ids=lambda case: case.name)
def case(request: pytest.FixtureRequest) -> ModelCase:
    found: ModelCase = request.param
    if "diffusers" in found.about["family"]:
        pytest.importorskip("diffusers")
    return found


@pytest.fixture(scope="module")
def imported(case: ModelCase, tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, ModelInfo]:
    """Through the file that `fasttrain import` writes."""
    out = tmp_path_factory.mktemp(case.name) / "model.safetensors"
    import_model(case.model, out, None, case.options())
    return load_model(out)


def denoised(case: ModelCase, imported: tuple[Any, ModelInfo]) -> tuple[Tensor, Tensor]:
    """F and D at the case's inputs."""
    network, info = imported
    raws: list[Tensor] = []
    hook = network.model.register_forward_hook(lambda module, inputs, out: raws.append(out))
    labels = case.labels("input/labels", info.network.label_dim)
    try:
        result = network(case.tensors["input/x"], case.tensors["input/sigma"], labels)
    finally:
        hook.remove()
    return raws[0], result


def test_the_network_computes_the_same(case: ModelCase, imported: tuple[Any, ModelInfo]) -> None:
    raw, result = denoised(case, imported)
    case.assert_close(raw, "raw")
    case.assert_close(result, "denoised")


def test_one_step_from_where_the_family_starts(
    case: ModelCase, imported: tuple[Any, ModelInfo]
) -> None:
    network, info = imported
    expected = float(case.about["one_step"]["sigma"])
    sampler = Sampler.of(info, None if info.task == "finetune" else 1)
    assert sampler.sigma == pytest.approx(min(expected, END), rel=1e-6)
    assert (info.task == "finetune") == (case.about["task"] == "one-step generator")
    labels = case.labels("input/z_labels", info.network.label_dim)
    images = sampler(network, case.tensors["input/z"], labels)
    case.assert_close(images, "one_step")


def test_heun_steps_stay_finite(case: ModelCase, imported: tuple[Any, ModelInfo]) -> None:
    """Of a random network there is no truth to compare with: its ends must be numbers, and churn
    must make a difference."""
    network, info = imported
    if info.task == "finetune":
        pytest.skip("a one-step generator")
    z = case.tensors["input/z"]
    labels = case.labels("input/z_labels", info.network.label_dim)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    plain = Sampler.of(info, 4)(network, z, labels)
    churned = Sampler.of(info, 4, "2")(network, z, labels, lambda step: noise)
    assert plain.isfinite().all()
    assert churned.isfinite().all()
    assert not torch.allclose(plain, churned)


def with_output(name: str) -> list[ModelCase]:
    return [case for case in cases() if f"output/{name}" in case.tensors]


@pytest.mark.parametrize("latent", with_output("raw_latents"), ids=lambda case: case.name)
def test_latents_are_scaled_as_the_family_does(latent: ModelCase) -> None:
    info = read_model_file(latent.model, latent.options()).info
    assert info is not None
    assert info.latents is not None
    assert info.latents.low == 0
    how, expected = info.latents, latent.tensors["output/raw_latents"]
    scale, bias = (torch.tensor(values)[:, None, None] for values in (how.scale, how.bias))
    latents = (latent.tensors["output/denoised"] - bias) / scale
    torch.testing.assert_close(latents, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("latent", with_output("one_step_decoded"), ids=lambda case: case.name)
def test_latents_are_decoded(latent: ModelCase) -> None:
    """By the decoder that came with the model, and scaled as the family does."""
    model = read_model_file(latent.model, latent.options())
    assert model.info is not None
    if latent.model.is_dir():
        vae = load_vae(latent.model)
    else:
        vae = first_stage(model.decoder, 1.0, latent.model)
    images = decode(vae, latent.tensors["output/one_step"], model.info.latents)
    latent.assert_close(images, "one_step_decoded")


def test_the_gain_is_what_moves_the_image(case: ModelCase, imported: tuple[Any, ModelInfo]) -> None:
    """|c_out|: half the change of D when F changes by two everywhere."""
    network, info = imported
    sigma = info.sigma or info.network.prediction.start
    z = case.tensors["input/z"]
    labels = case.labels("input/z_labels", info.network.label_dim)
    before = network(z.double() * sigma, sigma, labels)
    hook = network.model.register_forward_hook(lambda module, inputs, out: out + 2)
    try:
        after = network(z.double() * sigma, sigma, labels)
    finally:
        hook.remove()
    row = Prediction(info.network.prediction, one_step=info.task == "finetune")
    gain = float((after - before).abs().mean()) / 2
    assert gain == pytest.approx(row.gain(sigma), rel=1e-3)
    assert math.isfinite(gain)


@pytest.mark.parametrize("decoder", cases(decoders=True), ids=lambda case: case.name)
def test_a_decoder_of_latents(decoder: ModelCase) -> None:
    vae = load_vae(Path(decoder.model))
    decoder.assert_close(decode(vae, decoder.tensors["input/latents"], None), "decoded")
    mean, deviation = vae.network.encode(decoder.tensors["input/pixels"])
    decoder.assert_close(mean, "mean")
    decoder.assert_close(deviation, "std")
