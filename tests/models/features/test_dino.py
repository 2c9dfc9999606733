"""DINO's and DINOv2's transformers against torch's own layers, under their published names."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fasttrain.models.features.dino import DINO
from fasttrain.models.features.network import build_features
from fasttrain.system.errors import UserError


def as_torch_has_it(block: nn.Module) -> nn.TransformerEncoderLayer:
    """The same block as torch's pre-norm layer, the scales within its weights."""
    own = block.state_dict()
    for scale, layer in (("ls1.gamma", "attn.proj"), ("ls2.gamma", "mlp.fc2")):
        if scale in own:
            gamma = own.pop(scale)
            own[f"{layer}.weight"] = gamma[:, None] * own[f"{layer}.weight"]
            own[f"{layer}.bias"] = gamma * own[f"{layer}.bias"]
    names = {
        "self_attn.in_proj_": "attn.qkv.",
        "self_attn.out_proj.": "attn.proj.",
        "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.",
        "norm1.": "norm1.",
        "norm2.": "norm2.",
    }
    layer = nn.TransformerEncoderLayer(
        384, 6, 1536, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    ).double()
    kinds = ("weight", "bias")
    layer.load_state_dict({t + kind: own[o + kind] for t, o in names.items() for kind in kinds})
    return layer.requires_grad_(False)


@pytest.mark.parametrize(("patch", "scaled"), [(16, False), (14, True)])
def test_maps_are_those_of_torchs_layers_by_the_published_names(patch: int, scaled: bool) -> None:
    torch.manual_seed(0)
    network = DINO(patch, 3, scaled).double().eval().requires_grad_(False)
    for parameter in network.parameters():
        nn.init.normal_(parameter, parameter.mean().item(), 0.05)
    weights = network.state_dict()
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "blocks.11.norm2.bias"} <= {
        *weights
    }
    assert ("blocks.0.ls1.gamma" in weights) == scaled
    images = torch.randn(2, 3, 3 * patch, 3 * patch, dtype=torch.float64)
    proj = weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"]
    tokens = F.conv2d(images, *proj, stride=patch).flatten(2).transpose(1, 2)
    tokens = torch.cat([weights["cls_token"].expand(2, -1, -1), tokens], 1) + weights["pos_embed"]
    expected = []
    for place, block in enumerate(network.blocks, start=1):
        tokens = as_torch_has_it(block)(tokens)
        if place in (3, 6, 9, 12):
            expected.append(tokens[:, 1:].transpose(1, 2).unflatten(2, (3, 3)))
    for a, b in zip(network.stages(images), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_other_sizes_have_a_resized_embedding() -> None:
    """One that grows evenly from left to right still does, as far as bicubic curves do, and is the
    same in every row."""
    network = DINO(14, 37).requires_grad_(False)
    line = torch.arange(37.0).expand(37, 37).reshape(1, -1, 1).expand(-1, -1, 384)
    network.pos_embed[:, 1:] = line
    places = network._positions(16, 16)[0, 1:, 0].unflatten(0, (16, 16))
    torch.testing.assert_close(places, places[:1].expand(16, -1))
    steps = places[0].diff()[2:-2]
    torch.testing.assert_close(steps, torch.full_like(steps, 37 / 16.1), rtol=0.05, atol=0)
    assert float(steps.mean()) == pytest.approx(37 / 16.1, rel=0.01)


def test_a_resolution_that_patches_do_not_divide_is_refused() -> None:
    with pytest.raises(UserError, match="multiple of 14"):
        build_features("dinov2_vits14", 256, weights="random")


def test_the_missing_file_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FASTTRAIN_WEIGHTS", raising=False)
    with pytest.raises(UserError, match=r"download dinov2_vits14_pretrain.pth from DINOv2's"):
        build_features("dinov2_vits14")
