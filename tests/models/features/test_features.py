"""The frozen Lite0 features: what they see, that they never change, and their derivatives."""

from __future__ import annotations

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain.discriminator.class_means import class_mean_features
from fasttrain.models.features.efficientnet_lite import fold_batch_norms, load_pretrained
from fasttrain.models.features.network import FeatureNetwork, build_features
from fasttrain.system.errors import UserError


@cache
def features32() -> FeatureNetwork:
    return build_features("lite0", 32)


def images(n: int, channels: int, size: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, channels, size, size, generator=generator) * 2 - 1


def test_maps_are_the_pretrained_networks_of_the_resized_image() -> None:
    x = images(3, 3, 8)
    actual = build_features("lite0", 64)(x)
    with torch.no_grad():
        expected = load_pretrained("lite0").stages(
            F.interpolate(x, size=(64, 64), mode="bilinear", align_corners=False)
        )
    for features, wanted in zip(actual, expected, strict=True):
        torch.testing.assert_close(
            features, wanted, rtol=1e-3, atol=1e-4 * wanted.abs().max().item()
        )


def test_attributes_say_what_comes_out() -> None:
    network = build_features("lite0", 64)
    maps = network(images(1, 1, 64))
    assert network.name == "lite0"
    assert network.resolution == 64
    assert network.map_resolutions == (16, 8, 4, 2)
    assert network.channels == (24, 40, 112, 320)
    for features, channels, size in zip(
        maps, network.channels, network.map_resolutions, strict=True
    ):
        assert features.shape == (1, channels, size, size)
        assert features.std() > 0.01


def test_one_channel_is_grey() -> None:
    x = images(2, 1, 8)
    for one, three in zip(features32()(x), features32()(x.repeat(1, 3, 1, 1)), strict=True):
        torch.testing.assert_close(one, three)


@pytest.mark.parametrize("size", [32, 64])
def test_images_that_are_large_enough_are_not_resized(size: int) -> None:
    x = images(1, 3, size)
    expected = features32().network.stages(x)
    for actual, wanted in zip(features32()(x), expected, strict=True):
        torch.testing.assert_close(actual, wanted, rtol=1e-4, atol=1e-4)


def test_train_changes_nothing() -> None:
    network = build_features("lite0", 32)
    x = images(4, 3, 32)
    before = network(x)
    assert network.train() is network
    assert not any(module.training for module in network.modules())
    assert all(torch.equal(a, b) for a, b in zip(before, network(x), strict=True))


def test_gradients_reach_the_images_and_no_weight() -> None:
    network = build_features("lite0", 32)
    x = images(2, 1, 8).requires_grad_()
    sum(features.square().sum() for features in network(x)).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert (x.grad != 0).all()
    assert list(network.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in network.parameters())


def test_gradient_is_that_of_plain_torch_through_batch_norms() -> None:
    """In float64 against the unfolded network with trainable weights, which takes torch's path."""
    network = build_features("lite0", 32)
    network.network = load_pretrained("lite0").double()
    fold_batch_norms(network.network)
    plain = load_pretrained("lite0").double().requires_grad_(True)
    heads = [images(1, channels, 1, seed=channels).double() for channels in network.channels]

    def penalty(maps: list[Tensor], x: Tensor, scale: Tensor) -> Tensor:
        logits = [(features * head).mean() for features, head in zip(maps, heads, strict=True)]
        (gradient,) = torch.autograd.grad((scale * torch.stack(logits)).sum(), x, create_graph=True)
        return gradient.square().sum()

    results = []
    for use_plain in (False, True):
        x = images(1, 3, 32).double().requires_grad_()
        scale = torch.ones(4, dtype=torch.float64, requires_grad=True)
        maps = plain.stages(x) if use_plain else network(x)
        value = penalty(maps, x, scale)
        (second,) = torch.autograd.grad(value, scale)
        results.append((value.detach(), second))
    torch.testing.assert_close(results[0], results[1], rtol=1e-8, atol=1e-14)
    assert (results[0][1] != 0).all()


def test_runs_in_the_weights_dtype() -> None:
    network = build_features("lite0", 32).to(torch.bfloat16)
    x = images(2, 3, 16)
    for half, full in zip(network(x), features32()(x), strict=True):
        assert half.dtype == torch.bfloat16
        assert (half.float() - full).norm() < 0.05 * full.norm()


@pytest.mark.parametrize(("name", "resolution"), [("vgg19", 224), ("lite0", 40), ("lite0", 0)])
def test_bad_requests_say_what_to_do(name: str, resolution: int) -> None:
    with pytest.raises(UserError, match=r"choose one of lite0|multiple of 32"):
        build_features(name, resolution)


def test_class_means_over_uneven_batches() -> None:
    x = images(7, 1, 8)
    classes = torch.tensor([0, 2, 2, 0, 2, 2, 2])
    labels = F.one_hot(classes, 4).float()
    parts = [(x[:3], labels[:3]), (x[3:], labels[3:])]
    means = class_mean_features(features32(), parts, 4)
    pooled = features32()(x)[-1].mean(dim=(2, 3))
    assert means.shape == (4, 320)
    assert means.dtype == torch.float32
    torch.testing.assert_close(means[0], pooled[classes == 0].mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(means[2], pooled[classes == 2].mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(means[[1, 3]], pooled.mean(0).expand(2, -1), rtol=1e-4, atol=1e-5)


def test_class_means_of_nothing_or_of_other_labels_are_refused() -> None:
    x = images(2, 1, 8)
    with pytest.raises(UserError, match="no labelled images"):
        class_mean_features(features32(), [], 4)
    with pytest.raises(UserError, match="one-hot rows of 4"):
        class_mean_features(features32(), [(x, torch.ones(2, 3))], 4)
    with pytest.raises(UserError, match="one-hot rows of 4"):
        class_mean_features(features32(), [(x, None)], 4)


def test_weights_of_another_dtype_follow_the_networks() -> None:
    """Written in place they are made anew, and those that inference mode made have gradients."""
    network = build_features("lite0", 32, weights="random")
    prepared = images(1, 3, 32)

    def copies() -> Tensor:
        return network.maps(prepared.double())[3]

    with torch.inference_mode():
        before = copies().clone()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(0.5)
    expected = network.maps(prepared)[3]
    assert not torch.equal(before.float(), expected)
    torch.testing.assert_close(copies().float(), expected, rtol=1e-3, atol=1e-5)
    x = prepared.double().requires_grad_()
    (gradient,) = torch.autograd.grad(network.maps(x)[3].sum(), x)
    assert gradient.abs().sum() > 0


def test_inference_mode_leaves_nothing_behind_in_the_network() -> None:
    network = build_features("lite0", 32, weights="random")
    with torch.inference_mode():
        network(images(1, 3, 32))
    x = images(1, 3, 32).requires_grad_()
    (gradient,) = torch.autograd.grad(network(x)[3].sum(), x)
    assert gradient.abs().sum() > 0


def test_a_write_through_data_reaches_the_padded_weight() -> None:
    network = build_features("lite0", 32, weights="random")
    before = network(images(1, 3, 32))[0]
    stem = network.network._conv_stem
    stem.weight.data.zero_()
    after = network(images(1, 3, 32))[0]
    assert not torch.equal(before, after)
