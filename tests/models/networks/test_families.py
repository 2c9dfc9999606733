"""What the other families' networks say of themselves, and EDM2's forced normalisation."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from fasttrain.models.build import new_network
from fasttrain.models.freezing import apply_freezing
from fasttrain.settings import NetworkSettings, OptimizerSettings
from fasttrain.training.engines.local import LocalEngine

BASE: dict[str, Any] = {"img_resolution": 8, "img_channels": 3, "label_dim": 4}
SMALL: dict[str, Any] = {"model_channels": 16, "channel_mult": (1, 2), "num_blocks": 1}
EDM2: dict[str, Any] = {"model_type": "EDM2UNet", "attn_resolutions": (4,)} | SMALL
NETWORKS: dict[str, dict[str, Any]] = {
    "EDM2": EDM2 | {"options": {"channels_per_head": 16}},
    "DiT": {
        "model_type": "DiT",
        "options": {"hidden_size": 32, "depth": 2, "num_heads": 2},
    },
    "ADM": {"model_type": "DhariwalUNet", "attn_resolutions": (4,)}
    | SMALL
    | {"model_channels": 32, "options": {"norm_groups": 32, "num_heads": 2, "resample": "conv"}},
}
EXPECTED = {
    "EDM2": (
        {"conv_res0", "conv_res1", "attn_proj"},
        {"attn_qkv"},
        {"conv_skip"},
        {"emb_linear", "emb_noise", "emb_label", "out_gain", "emb_gain"},
    ),
    "DiT": ({"fc1", "fc2", "proj"}, {"qkv"}, {"x_embedder"}, {"adaLN_modulation", "y_embedder"}),
    "ADM": ({"conv0", "conv1", "proj", "conv"}, {"qkv"}, {"skip"}, {"affine", "norm0", "out_conv"}),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_freezing_is_by_kind_of_layer(name: str) -> None:
    network = new_network("edm", NetworkSettings(**BASE, **NETWORKS[name]))
    *levels, always = EXPECTED[name]
    seen: set[str] = set()
    for level, kinds in enumerate(levels, start=1):
        apply_freezing(network, level)  # type: ignore[arg-type]
        frozen = {n for n, p in network.named_parameters() if not p.requires_grad}
        assert frozen > seen
        for names in (frozen - seen,):
            assert all(kinds & set(item.split(".")) or level == 3 for item in names)
        seen = frozen
    trains = {n for n, p in network.named_parameters() if p.requires_grad}
    for kind in always:
        assert any(kind in item.split(".") for item in trains), kind


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_and_no_label_differ_and_blocks_are_whole(name: str) -> None:
    torch.manual_seed(0)
    network = new_network("edm", NetworkSettings(**BASE, **NETWORKS[name])).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.2)
    x, labels = torch.randn(2, 3, 8, 8), torch.eye(4)[:2]
    assert not torch.allclose(network(x, 1.0, labels), network(x, 1.0))
    assert torch.equal(network(x, 1.0, torch.zeros(2, 4)), network(x, 1.0))
    inside = {id(p) for block in network.blocks() for p in block.parameters()}
    assert inside < {id(p) for p in network.parameters()}


def test_weights_that_train_stay_normalised() -> None:
    torch.manual_seed(0)
    network = new_network("edm", NetworkSettings(**BASE, **NETWORKS["EDM2"]))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    apply_freezing(network, 1)
    before = {n: p.clone() for n, p in network.named_parameters()}
    engine = LocalEngine(network, OptimizerSettings(rate=0.05))
    engine.backward(network(torch.randn(2, 3, 8, 8), 1.0).square().mean())
    assert engine.step()
    for name, parameter in network.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name
        elif parameter.dim() > 1:
            square = parameter.square().flatten(1).mean(1)
            torch.testing.assert_close(square, torch.ones_like(square), rtol=1e-3, atol=1e-3)


def test_weights_stay_normalised_inside_another_module() -> None:
    """As in a classifier on a network's maps."""
    made = []
    for wrap in (lambda network: network, lambda network: nn.ModuleDict({"network": network})):
        torch.manual_seed(0)
        network = new_network("edm", NetworkSettings(**BASE, **NETWORKS["EDM2"]))
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.7)
        engine: LocalEngine[Any] = LocalEngine(wrap(network), OptimizerSettings(rate=0.05))
        engine.backward(network(torch.randn(2, 3, 8, 8), 1.0).square().mean())
        assert engine.step()
        made.append(network.state_dict())
    assert all(torch.equal(made[0][name], value) for name, value in made[1].items())


def test_a_convolution_halves_and_doubles() -> None:
    network = new_network("edm", NetworkSettings(**BASE, **NETWORKS["ADM"]))
    x = torch.randn(1, 32, 8, 8)
    down, up = network.model.enc["4x4_down"], network.model.dec["8x8_up"]
    expected = torch.nn.functional.conv2d(x, down.conv.weight, down.conv.bias, 2, 1)
    assert torch.equal(down(x, x)[0], expected)
    wide = torch.randn(1, 64, 4, 4)
    nearest = torch.nn.functional.interpolate(wide, scale_factor=2)
    expected = torch.nn.functional.conv2d(nearest, up.conv.weight, up.conv.bias, 1, 1)
    torch.testing.assert_close(up(wide, wide)[0], expected)
