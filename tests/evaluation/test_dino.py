"""The extractor of DINO's features, with random weights under the published names."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from fasttrain.evaluation.extractors import load_extractor
from fasttrain.models.features.dino import ClassToken
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError


@pytest.fixture(scope="module")
def network() -> ClassToken:
    torch.manual_seed(0)
    network = ClassToken(16, 14).eval().requires_grad_(False)
    torch.nn.init.normal_(network.norm.weight, 1.0, 0.2)
    torch.nn.init.normal_(network.norm.bias, 0.0, 0.2)
    return network


def test_features_are_the_class_token_behind_the_last_norm(
    network: ClassToken, tmp_path: Path
) -> None:
    path = tmp_path / "dino_vits16.safetensors"
    save_file(network.state_dict(), path)
    extractor = load_extractor("dino_vits16", 32, path)
    images = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    levels = ((images + 1) * 127.5).round() / 255
    mean, std = (
        torch.tensor(values).view(1, 3, 1, 1)
        for values in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    x = F.interpolate((levels - mean) / std, size=(32, 32), mode="bilinear")
    tokens = network.patch_embed(x)
    tokens = torch.cat([network.cls_token.expand(2, -1, -1), tokens], 1)
    tokens = tokens + network._positions(2, 2)
    for block in network.blocks:
        tokens = block(tokens)
    norm = network.norm
    expected = F.layer_norm(tokens, (384,), norm.weight, norm.bias, 1e-6)[:, 0]
    torch.testing.assert_close(extractor(images), expected, rtol=1e-3, atol=1e-3)
    assert extractor.protocol["extractor"] == "dino_vits16"
    assert extractor.width == 384


def test_what_is_missing_or_wrong_is_one_line(
    network: ClassToken, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTTRAIN_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=r"^no weights of dino_vits16: download dino_deit.*$"):
        load_extractor("dino_vits16")
    path = tmp_path / "file.safetensors"
    weights = {name: w for name, w in network.state_dict().items() if name != "norm.bias"}
    save_file(weights, path)
    with pytest.raises(UserError, match=r"norm.bias is missing there"):
        load_extractor("dino_vits16", 32, path)
    with pytest.raises(UserError, match=r"resolution 40: set it to a multiple of 16"):
        load_extractor("dino_vits16", 40, path)
    changes = ["evaluate.extractor=dino_vits16", f"evaluate.weights={path}"]
    assert load_settings("digits-d2o-f", changes, FinetuneSettings).evaluate.weights == path
