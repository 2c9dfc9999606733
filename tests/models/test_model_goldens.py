"""Every family's genuine files: F, D, one step and decoded latents as its code computes them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.models.files.importing import import_model
from fasttrain.models.files.model_file import ModelInfo
from fasttrain.models.files.vae import decode, load_vae
from fasttrain.models.load import load_model
from fasttrain.models.networks.prediction import Prediction
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings.schedules import END
from tests.model_goldens import ModelCase, cases


def of_cases(chosen: Iterable[ModelCase] = cases()) -> pytest.MarkDecorator:
    """A test of these cases, of all unless they are given."""
    return pytest.mark.parametrize("case", chosen, ids=lambda case: case.name)


@pytest.fixture(scope="module")
def models() -> dict[str, tuple[Any, ModelInfo]]:
    """Of every case that was imported already."""
    return {}


@pytest.fixture
def imported(
    case: ModelCase, models: dict[str, tuple[Any, ModelInfo]], tmp_path: Path
) -> tuple[Any, ModelInfo]:
    """Through the file that `fasttrain import` writes, once for all tests of a case."""
    if "diffusers" in case.about["family"]:
        pytest.importorskip("diffusers")
    if case.name not in models:
        out = tmp_path / "model.safetensors"
        import_model(case.model, out, None, case.options())
        models[case.name] = load_model(out)
    return models[case.name]


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


@of_cases()
def test_the_network_computes_the_same(case: ModelCase, imported: tuple[Any, ModelInfo]) -> None:
    raw, result = denoised(case, imported)
    case.assert_close(raw, "raw")
    case.assert_close(result, "denoised")


@of_cases()
def test_one_step_from_where_the_family_starts(
    case: ModelCase, imported: tuple[Any, ModelInfo]
) -> None:
    network, info = imported
    expected = float(case.about["one_step"]["sigma"])
    sampler = Sampler.of(info, None if info.task == "finetune" else 1)
    assert sampler.sigma == pytest.approx(min(expected, END), rel=1e-6)
    assert (info.task == "finetune") == case.is_one_step
    labels = case.labels("input/z_labels", info.network.label_dim)
    images = sampler(network, case.tensors["input/z"], labels)
    case.assert_close(images, "one_step")


@of_cases(case for case in cases() if not case.is_one_step)
def test_heun_steps_stay_finite(case: ModelCase, imported: tuple[Any, ModelInfo]) -> None:
    """Of a random network there is no truth to compare with: its ends must be numbers, and churn
    must make a difference."""
    network, info = imported
    z = case.tensors["input/z"]
    labels = case.labels("input/z_labels", info.network.label_dim)
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0))
    plain = Sampler.of(info, 4)(network, z, labels)
    churned = Sampler.of(info, 4, "2")(network, z, labels, lambda step: noise)
    assert plain.isfinite().all()
    assert churned.isfinite().all()
    assert not torch.allclose(plain, churned)


@of_cases(case for case in cases() if case.holds("output/raw_latents"))
def test_latents_are_scaled(case: ModelCase, imported: tuple[Any, ModelInfo]) -> None:
    """As EDM2 does it."""
    how = imported[1].latents
    assert how is not None
    assert how.low == 0
    scale, bias = (torch.tensor(values)[:, None, None] for values in (how.scale, how.bias))
    latents = (case.tensors["output/denoised"] - bias) / scale
    torch.testing.assert_close(latents, case.tensors["output/raw_latents"], rtol=1e-4, atol=1e-4)


@of_cases(case for case in cases() if case.holds("output/one_step_decoded"))
def test_latents_are_decoded(case: ModelCase, imported: tuple[Any, ModelInfo]) -> None:
    """By the decoder that came with the model, and scaled as the family does."""
    vae = load_vae(case.model)
    images = decode(vae, case.tensors["output/one_step"], imported[1].latents)
    case.assert_close(images, "one_step_decoded")


@of_cases()
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
