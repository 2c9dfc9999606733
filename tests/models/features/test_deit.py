"""DeiT-B distilled against torch's own transformer layers and convolutions, and its reassembly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.models.features.deit import DistilledDeiT


@pytest.fixture(scope="module")
def network() -> DistilledDeiT:
    torch.manual_seed(0)
    network = DistilledDeiT(seed=3)
    for parameter in network.parameters():  # also norms and tokens with values that show
        nn.init.normal_(parameter, parameter.mean().item(), 0.03)
    return network.double().eval().requires_grad_(False)


def layer_of(block: nn.Module) -> nn.TransformerEncoderLayer:
    """The same block as torch's pre-norm transformer layer."""
    layer = nn.TransformerEncoderLayer(
        768, 12, 3072, 0.0, "gelu", layer_norm_eps=1e-6, batch_first=True, norm_first=True
    )
    own = block.state_dict()
    names = {
        "self_attn.in_proj_weight": "attn.qkv.weight",
        "self_attn.in_proj_bias": "attn.qkv.bias",
        "self_attn.out_proj.weight": "attn.proj.weight",
        "self_attn.out_proj.bias": "attn.proj.bias",
        "linear1.weight": "mlp.fc1.weight",
        "linear1.bias": "mlp.fc1.bias",
        "linear2.weight": "mlp.fc2.weight",
        "linear2.bias": "mlp.fc2.bias",
        "norm1.weight": "norm1.weight",
        "norm1.bias": "norm1.bias",
        "norm2.weight": "norm2.weight",
        "norm2.bias": "norm2.bias",
    }
    layer.load_state_dict({theirs: own[ours] for theirs, ours in names.items()})
    return layer.double().requires_grad_(False)  # in training mode: its fast path has no gradients


def expected_maps(network: DistilledDeiT, x: Tensor) -> list[Tensor]:
    rows, columns = x.shape[2] // 16, x.shape[3] // 16
    patches = F.conv2d(x, network.patch_embed.proj.weight, network.patch_embed.proj.bias, 16)
    grid = network.pos_embed[:, 2:].transpose(1, 2).reshape(1, 768, 14, 14)
    if (rows, columns) != (14, 14):
        grid = F.interpolate(grid, size=(rows, columns), mode="bilinear", align_corners=False)
    tokens = torch.cat(
        [
            (network.cls_token + network.pos_embed[:, :1]).expand(len(x), -1, -1),
            (network.dist_token + network.pos_embed[:, 1:2]).expand(len(x), -1, -1),
            (patches + grid).flatten(2).transpose(1, 2),
        ],
        dim=1,
    )
    maps = []
    for place, block in enumerate(network.blocks):
        tokens = layer_of(block)(tokens)
        if place in (2, 5, 8, 11):
            maps.append(tokens[:, 2:].transpose(1, 2).reshape(len(x), 768, rows, columns))
    buffers = dict(network.reassemble.named_buffers())
    for k, m in enumerate(maps):
        maps[k] = F.conv2d(m, buffers[f"mix{k}_weight"], buffers[f"mix{k}_bias"])
    for k, factor in ((0, 4), (1, 2)):
        maps[k] = F.conv_transpose2d(
            maps[k], buffers[f"grow{k}_weight"], buffers[f"grow{k}_bias"], factor
        )
    maps[3] = F.conv2d(maps[3], buffers["shrink3_weight"], buffers["shrink3_bias"], 2, 1)
    return maps


def test_names_and_sizes_are_timms(network: DistilledDeiT) -> None:
    """timm's model has 87,338,192 parameters; its final norm and two classifiers are not here."""
    left_out = 2 * 768 + 2 * (768 * 1000 + 1000)
    assert sum(p.numel() for p in network.parameters()) == 87_338_192 - left_out
    names = {name for name, _ in network.named_parameters()}
    assert {"cls_token", "dist_token", "pos_embed", "patch_embed.proj.weight"} <= names
    assert {"blocks.11.attn.qkv.weight", "blocks.0.mlp.fc1.bias"} <= names
    assert network.pos_embed.shape == (1, 198, 768)


@pytest.mark.parametrize(("height", "width"), [(224, 224), (32, 64)])
def test_maps_equal_torchs_own_layers(network: DistilledDeiT, height: int, width: int) -> None:
    x = torch.randn(1, 3, height, width, dtype=torch.float64)
    got, wanted = network.stages(x), expected_maps(network, x)
    sizes = [(m.shape[1], height // m.shape[2], width // m.shape[3]) for m in got]
    assert sizes == [(96, 4, 4), (192, 8, 8), (384, 16, 16), (768, 32, 32)]
    for ours, theirs in zip(got, wanted, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_both_orders_of_gradients(network: DistilledDeiT) -> None:
    """torch's fast attention cannot be differentiated twice; ours can, and once it is the same."""
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)

    def results(maps: list[Tensor]) -> list[Tensor]:
        total = sum(m.square().mean() for m in maps)
        (plain,) = torch.autograd.grad(total, x, retain_graph=True)
        (first,) = torch.autograd.grad(total, x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return [plain, first.detach(), second]

    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        wanted = results(expected_maps(network, x))
    for got, expected in zip(results(network.stages(x)), wanted, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-7, atol=1e-9 * expected.abs().max())


def test_the_reassembly_depends_on_its_seed_alone() -> None:
    torch.manual_seed(0)
    first = DistilledDeiT(seed=5).reassemble.state_dict()
    torch.manual_seed(1)
    again = DistilledDeiT(seed=5).reassemble.state_dict()
    other = DistilledDeiT(seed=6).reassemble.state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)
    assert first["mix0_weight"].abs().max() <= 768**-0.5
    assert first["grow0_weight"].abs().max() <= (96 * 16) ** -0.5
    assert first["shrink3_weight"].std().item() == pytest.approx((9 * 768 * 3) ** -0.5, rel=0.01)
