"""Inception-v3 against a table of its layers, put together from torch's functions alone."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.models.features.inception import InceptionV3
from fasttrain.models.features.tf1_resize import tf1_bilinear

STEM = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
}
A = [("branch1x1",), ("branch5x5_1", "branch5x5_2")]
A += [("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), ("mean", "branch_pool")]
B = [("branch3x3",), ("branch3x3dbl_1", "branch3x3dbl_2", "branch3x3dbl_3"), ("halve",)]
C = [("branch1x1",), ("branch7x7_1", "branch7x7_2", "branch7x7_3")]
C += [tuple(f"branch7x7dbl_{i}" for i in range(1, 6)), ("mean", "branch_pool")]
D = [("branch3x3_1", "branch3x3_2"), tuple(f"branch7x7x3_{i}" for i in range(1, 5)), ("halve",)]
E1 = [("branch1x1",), ("branch3x3_1", "branch3x3_2a"), ("branch3x3_1", "branch3x3_2b")]
E1 += [("branch3x3dbl_1", "branch3x3dbl_2", f"branch3x3dbl_3{end}") for end in "ab"]
E1 += [("mean", "branch_pool")]
E2 = [*E1[:-1], ("max", "branch_pool")]
BLOCKS = {
    "Mixed_5b": A,
    "Mixed_5c": A,
    "Mixed_5d": A,
    "Mixed_6a": B,
    "Mixed_6b": C,
    "Mixed_6c": C,
    "Mixed_6d": C,
    "Mixed_6e": C,
    "Mixed_7a": D,
    "Mixed_7b": E1,
    "Mixed_7c": E2,
}
"""Chains of layers of each block, whose results lie beside each other."""
WIDTHS = {
    "Mixed_5b.branch_pool": 32,
    "Mixed_5c.branch_pool": 64,
    "Mixed_5d.branch5x5_1": 48,
    "Mixed_6a.branch3x3": 384,
    "Mixed_6b.branch7x7_2": 128,
    "Mixed_6d.branch7x7dbl_4": 160,
    "Mixed_6e.branch7x7_3": 192,
    "Mixed_7a.branch3x3_2": 320,
    "Mixed_7b.branch3x3dbl_1": 448,
    "Mixed_7c.branch3x3dbl_3b": 384,
}
STRIDED = {"Conv2d_1a_3x3", "Mixed_6a.branch3x3", "Mixed_6a.branch3x3dbl_3"}
STRIDED |= {"Mixed_7a.branch3x3_2", "Mixed_7a.branch7x7x3_4"}
WHOLE_WINDOWS = STRIDED | {"Conv2d_2a_3x3", "Conv2d_4a_3x3"}


def layer(weights: Mapping[str, Tensor], name: str, x: Tensor) -> Tensor:
    weight = weights[f"{name}.conv.weight"]
    height, width = weight.shape[2:]
    padding = (0, 0) if name in WHOLE_WINDOWS else ((height - 1) // 2, (width - 1) // 2)
    x = F.conv2d(x, weight, None, 2 if name in STRIDED else 1, padding)
    mean, var = (weights[f"{name}.bn.running_{kind}"][:, None, None] for kind in ("mean", "var"))
    gain, bias = (weights[f"{name}.bn.{kind}"][:, None, None] for kind in ("weight", "bias"))
    return ((x - mean) / (var + 0.001).sqrt() * gain + bias).clamp(min=0)


def around(x: Tensor, kind: str) -> Tensor:
    """The mean or the maximum of the pixels that there are in each 3x3."""
    filler = 0.0 if kind == "mean" else -torch.inf
    windows = F.pad(x, (1, 1, 1, 1), value=filler).unfold(2, 3, 1).unfold(3, 3, 1)
    if kind == "max":
        return windows.amax((-2, -1))
    there = F.pad(torch.ones_like(x), (1, 1, 1, 1)).unfold(2, 3, 1).unfold(3, 3, 1)
    return windows.sum((-2, -1)) / there.sum((-2, -1))


def halve(x: Tensor) -> Tensor:
    return x.unfold(2, 3, 2).unfold(3, 3, 2).amax((-2, -1))


def expected_maps(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    for name in STEM:
        x = layer(weights, name, x)
        if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
            x = halve(x)
    for block, chains in BLOCKS.items():
        results = []
        for chain in chains:
            y = x
            for part in chain:
                if part == "halve":
                    y = halve(y)
                elif part in ("mean", "max"):
                    y = around(y, part)
                else:
                    y = layer(weights, f"{block}.{part}", y)
            results.append(y)
        x = torch.cat(results, 1)
    return x


@pytest.fixture(scope="module")
def network() -> InceptionV3:
    """In float64, with weights and statistics that let signals through."""
    torch.manual_seed(0)
    network = InceptionV3().double()
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
        elif isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.8, 1.2)
            nn.init.uniform_(module.bias, -0.2, 0.2)
            nn.init.uniform_(module.running_mean, -0.2, 0.2)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.8, 1.2)  # type: ignore[arg-type]
    return network.eval().requires_grad_(False)


def test_names_and_sizes_are_those_of_the_published_file(network: InceptionV3) -> None:
    """torchvision's network without its auxiliary classifier has 23,834,568 parameters; that one
    has 1000 classes, this one 1008."""
    own = network.state_dict()
    layers = {*STEM, *(f"{b}.{p}" for b, chains in BLOCKS.items() for c in chains for p in c)}
    layers = {name for name in layers if name.rpartition(".")[2] not in ("mean", "max", "halve")}
    assert len(layers) == 94
    kinds = ["conv.weight", *(f"bn.{k}" for k in ("weight", "bias", "running_mean", "running_var"))]
    kinds.append("bn.num_batches_tracked")
    assert set(own) == {f"{n}.{kind}" for n in layers for kind in kinds} | {"fc.weight", "fc.bias"}
    assert sum(p.numel() for p in network.parameters()) == 23_834_568 + 8 * (2048 + 1)
    for name, shape in STEM.items():
        assert own[f"{name}.conv.weight"].shape == shape
    for name, width in WIDTHS.items():
        assert own[f"{name}.conv.weight"].shape[0] == width, name
    assert own["fc.weight"].shape == (1008, 2048)


def test_maps_are_those_of_the_table_before_and_after_folding(network: InceptionV3) -> None:
    x = torch.rand(1, 3, 107, 80, dtype=torch.float64) * 2 - 1
    expected = expected_maps(network.state_dict(), x)
    assert expected.shape == (1, 2048, 2, 1)
    assert expected.std() > 0.1
    torch.testing.assert_close(network.maps(x), expected, rtol=1e-10, atol=1e-12)
    features = torch.rand(3, 2048, dtype=torch.float64)
    scores = features @ network.state_dict()["fc.weight"].T
    torch.testing.assert_close(network.logits(features), scores)
    network.fold_batch_norms()
    network.fold_batch_norms()
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    torch.testing.assert_close(network.maps(x), expected, rtol=1e-9, atol=1e-11)


def test_features_are_of_levels_resized_as_tensorflow_did(
    network: InceptionV3, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def maps(x: Tensor) -> Tensor:
        seen.append(x)
        return torch.stack([x.amax(1)] * 4, 1)

    monkeypatch.setattr(network, "maps", maps)
    levels = torch.randint(0, 256, (2, 3, 8, 8)).double()
    features = network.pooled(levels)
    assert torch.equal(seen[0], (tf1_bilinear(levels, (299, 299)) - 128) / 128)
    assert seen[0].min() >= -1
    assert seen[0].max() <= 127 / 128
    torch.testing.assert_close(features, seen[0].amax(1).mean((1, 2))[:, None].expand(2, 4))
