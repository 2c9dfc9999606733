"""VGG16 with batch norm against torch's own layers put together as torchvision does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fasttrain.models.features.vgg import VGG16BN

CUTS = (13, 23, 33, 43)


def torchvisions() -> nn.Sequential:
    """`vgg16_bn().features`: configuration D of the paper."""
    layers: list[nn.Module] = []
    channels = 3
    for entry in [64, 64, 0, 128, 128, 0, 256, 256, 256, 0, 512, 512, 512, 0, 512, 512, 512, 0]:
        if not entry:
            layers.append(nn.MaxPool2d(2, stride=2))
            continue
        layers += [nn.Conv2d(channels, entry, 3, padding=1), nn.BatchNorm2d(entry)]
        layers.append(nn.ReLU(inplace=True))
        channels = entry
    return nn.Sequential(*layers)


@pytest.fixture(scope="module")
def pair() -> tuple[nn.Sequential, VGG16BN]:
    """torch's and ours with the same weights in float64, batch norms with own statistics."""
    torch.manual_seed(0)
    theirs, ours = torchvisions().double(), VGG16BN().double()
    for layer in theirs:
        if isinstance(layer, nn.BatchNorm2d):
            for tensor, low, high in (
                (layer.weight, 0.5, 1.5),
                (layer.bias, -0.5, 0.5),
                (layer.running_mean, -0.5, 0.5),
                (layer.running_var, 0.5, 1.5),
            ):
                nn.init.uniform_(tensor, low, high)  # type: ignore[arg-type]
    ours.load_state_dict({f"features.{k}": v for k, v in theirs.state_dict().items()})
    return theirs.eval().requires_grad_(False), ours.eval().requires_grad_(False)


def expected_maps(theirs: nn.Sequential, x: Tensor) -> list[Tensor]:
    maps, before = [], 0
    for cut in CUTS:
        x = theirs[before:cut](x)
        maps.append(x)
        before = cut
    return maps


def test_names_and_sizes_are_torchvisions() -> None:
    ours = VGG16BN()
    assert sum(p.numel() for p in ours.parameters()) == 14_723_136
    theirs = {f"features.{name}" for name in torchvisions().state_dict()}
    assert set(ours.state_dict()) == theirs
    assert ours.stage_channels == (128, 256, 512, 512)


def test_maps_and_gradients_before_and_after_folding(
    pair: tuple[nn.Sequential, VGG16BN],
) -> None:
    theirs, ours = pair
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64, requires_grad=True)
    weights = [torch.randn_like(m) for m in expected_maps(theirs, x)]

    def results(maps: list[Tensor]) -> tuple[Tensor, ...]:
        """Maps, gradient, and the gradient of the gradient's square: what R1 takes."""
        total = sum((m.square() * w).sum() for m, w in zip(maps, weights, strict=True))
        (first,) = torch.autograd.grad(total, x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().sum(), x)
        return (*(m.detach() for m in maps), first.detach(), second)

    wanted = results(expected_maps(theirs, x))
    assert [m.shape[-1] for m in wanted[:4]] == [16, 8, 4, 2]
    for fold in (False, True):
        if fold:
            ours.fold_batch_norms()
            assert not any(isinstance(layer, nn.BatchNorm2d) for layer in ours.modules())
        for got, expected in zip(results(ours.stages(x)), wanted, strict=True):
            scale = expected.abs().max().item()
            torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-11 * scale)
