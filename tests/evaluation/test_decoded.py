"""A model of latents is evaluated with an autoencoder, and its result says which."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from fasttrain.evaluation.measure import evaluate_model
from fasttrain.evaluation.request import Request
from fasttrain.evaluation.result import text
from fasttrain.models.build import new_network
from fasttrain.models.files.families.foreign import Latents
from fasttrain.models.files.model_file import ModelInfo
from fasttrain.models.files.vae import load_vae
from fasttrain.settings import NetworkSettings
from fasttrain.system.tensors import write_tensors
from tests.evaluation.results import ALONE, values
from tests.latents import VAE


def test_results_with_two_autoencoders_are_two(shards: Path, tmp_path: Path) -> None:
    network = NetworkSettings(
        img_resolution=4,
        img_channels=4,
        model_channels=8,
        channel_mult=(1,),
        num_blocks=1,
        attn_resolutions=(),
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = new_network("one_step", network).state_dict()
    latents = Latents((0.2,) * 4, (0.0,) * 4)
    info = ModelInfo("finetune", network, 80.0, "model", latents=latents)
    model = tmp_path / "model.safetensors"
    write_tensors(model, weights, info.metadata())
    other = tmp_path / "other"
    shutil.copytree(VAE, other)
    (file,) = other.rglob("*.safetensors")
    changed = load_file(file)
    save_file({name: 1.5 * x if "conv_in" in name else x for name, x in changed.items()}, file)

    results = [
        evaluate_model(model, Request(data=str(shards), samples=6, metrics=("kd",), vae=vae), ALONE)
        for vae in (VAE, other)
    ]
    paths = {result["path"] for result in results}
    assert len(paths) == 2
    for result, vae in zip(results, (VAE, other), strict=True):
        digits = load_vae(vae).sha256[:12]
        assert result["model"]["vae"] == digits
        assert f"decoded by autoencoder {digits}" in text(result)
    assert values(results[0]) != values(results[1])
    # In one file the second's metrics are not put beside the first's.
    out = tmp_path / "one.json"
    for vae, metrics in ((VAE, ("kd",)), (other, ("precision",))):
        request = Request(data=str(shards), samples=6, metrics=metrics, vae=vae, out=out)
        evaluate_model(model, request, ALONE)
    assert list(json.loads(out.read_text())["rows"]["model"]["metrics"]) == ["precision"]
