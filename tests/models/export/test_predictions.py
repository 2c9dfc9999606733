"""Exports of generators in another wrapper than D2O's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from fasttrain.models.export import export_model
from fasttrain.models.load import load_model
from fasttrain.sampling.generate import generate
from fasttrain.sampling.sampler import Sampler
from fasttrain.system.errors import UserError
from tests.small_models import PLAIN, write_model


@pytest.mark.parametrize("data", [0.5, 1.0])
def test_a_generator_in_a_diffusion_models_wrapper(data: float, tmp_path: Path) -> None:
    """As SiD's: the network's input is given back at no noise, not at a little."""
    pytest.importorskip("diffusers")
    from fasttrain.models.export.diffusers_part import OneStepPipeline, OneStepUNet

    prediction = {"kind": "edm", "eps": 0.0, "sigma_data": data}
    model = write_model(
        tmp_path / "sid.safetensors", PLAIN | {"prediction": prediction}, sigma="2.5"
    )
    export_model(model, tmp_path / "sid", to="diffusers")
    config = json.loads((tmp_path / "sid/unet/config.json").read_text())
    unet = OneStepUNet(config["network"])
    weights = load_file(tmp_path / "sid/unet/diffusion_pytorch_model.safetensors")
    unet.load_state_dict(weights)
    network, info = load_model(model)
    expected = generate(Sampler.of(info), network, range(4))
    found = OneStepPipeline(unet.eval(), 2.5)(seeds=range(4), output_type="raw").images
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    other = PLAIN | {"prediction": prediction | {"eps": 0.002}}
    network = load_model(write_model(tmp_path / "d2o.safetensors", other, sigma="2.5"))[0]
    assert (generate(Sampler.of(info), network, range(4)) - expected).abs().max() > 1e-4
    (tmp_path / "sid/unet/diffusion_pytorch_model.safetensors").unlink()
    save_file(weights, tmp_path / "sid/unet/diffusion_pytorch_model.safetensors")  # no metadata
    back, found_info = load_model(tmp_path / "sid")
    assert found_info.network == info.network
    assert torch.equal(generate(Sampler.of(found_info), back, range(4)), expected)


def test_another_prediction_has_weights_alone(tmp_path: Path) -> None:
    flow = PLAIN | {"prediction": {"kind": "flow"}}
    model = write_model(tmp_path / "flow.safetensors", flow, sigma="100")
    for to in ("diffusers", "onnx"):
        with pytest.raises(UserError, match=r"or prediction \(flow\) than those of EDM's"):
            export_model(model, tmp_path / "out", to=to)  # type: ignore[arg-type]
