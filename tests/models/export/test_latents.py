"""Exports of a model of latents: its scaling goes with the weights, ONNX has the decoder inside."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import fasttrain
from fasttrain.models.export import export_model
from fasttrain.models.files.model_file import read_model_file
from fasttrain.models.load import load_model
from fasttrain.sampling.draws import sample_latents
from fasttrain.sampling.generate import generate
from fasttrain.sampling.sampler import Sampler
from fasttrain.system.errors import UserError
from tests.latents import VAE
from tests.small_models import PLAIN, write_model

HOW = {"scale": [0.5, 1.0, 2.0, 1.0], "bias": [0.0, 0.1, -0.1, 0.0], "low": 0.0}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("latents") / "model.safetensors"
    return write_model(path, PLAIN | {"img_channels": 4}, latents=json.dumps(HOW))


def test_the_scaling_is_exported_and_read_again(model: Path, tmp_path: Path) -> None:
    out = tmp_path / "again.safetensors"
    export_model(model, out)
    before, after = read_model_file(model).info, read_model_file(out).info
    assert before is not None
    assert after == replace(before, name=out.name)
    assert after.latents is not None
    assert after.latents.bias == (0.0, 0.1, -0.1, 0.0)
    assert "--vae PATH" in (tmp_path / "again.safetensors.md").read_text()


def test_pictures_need_the_autoencoder(model: Path) -> None:
    network, info = load_model(model)
    with pytest.raises(UserError, match="--vae PATH"):
        generate(Sampler.of(info), network, range(1))
    network, info = load_model(model, vae=VAE)
    assert generate(Sampler.of(info), network, range(2)).shape == (2, 3, 16, 16)
    assert generate(Sampler.of(info), network, range(2), decoded=False).shape == (2, 4, 8, 8)
    expected = generate(Sampler.of(info), network, range(2))
    assert torch.equal(fasttrain.load(model, vae=VAE).sample(range(2)), expected)


def test_a_pipeline_of_latents_is_refused(model: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="makes latents"):
        export_model(model, tmp_path / "pipeline", to="diffusers", vae=VAE)
    assert not (tmp_path / "pipeline").exists()


@pytest.mark.slow
def test_onnx_makes_images(model: Path, tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    out = tmp_path / "model.onnx"
    export_model(model, out, to="onnx", vae=VAE)
    network, info = load_model(model, vae=VAE)
    expected = generate(Sampler.of(info), network, range(2))
    session = onnxruntime.InferenceSession(out)
    z = sample_latents(torch.arange(2), (4, 8, 8))
    inputs = {"latents": z.numpy(), "labels": torch.arange(2).numpy()}
    (found,) = session.run(["images"], inputs)
    torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-3, atol=1e-3)
