"""The discriminator as it runs against its plain composition as published: logits, gradients, exact
R1; and what must hold of the fast path alone."""

from __future__ import annotations

from functools import cache, partial
from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.models.features.backbone import backbone
from fasttrain.models.features.efficientnet_lite import EfficientNetLite, fold_batch_norms
from fasttrain.models.features.network import FeatureNetwork, build_features, load_weights
from fasttrain.models.networks import frozen_conv
from fasttrain.training.objectives.gan import discriminator_loss, r1_penalty
from fasttrain.training.precision import agreement
from fasttrain_kernels import bias_activation_, image_prep, using
from tests.discriminator.plain_discriminator import PlainDiscriminator

norm_file = import_module("fasttrain_kernels.group_norm")

SIZES: dict[str, Any] = {"label_dim": 3, "norm_group": 2, "cout": 8, "width": 16}
RESOLUTIONS = {"lite0": (16, 8), "vgg16_bn": (16, 16, 8), "deit_base_distilled": (16, 8)}


def exact(name: str) -> FeatureNetwork:
    """In float64 from before its batch norms are folded."""
    network = backbone(name).new(0).eval()
    if name == "lite0":
        load_weights(network, backbone(name).published, None)
    network.double()
    if isinstance(network, EfficientNetLite):
        fold_batch_norms(network)
    elif name == "vgg16_bn":
        network.fold_batch_norms()
    return FeatureNetwork(name, network, 32)  # type: ignore[arg-type]


def build(*features: FeatureNetwork, **changes: Any) -> ProjectedDiscriminator:
    torch.manual_seed(1)
    resolutions = RESOLUTIONS[features[0].name]
    return ProjectedDiscriminator(features, **{**SIZES, "resolutions": resolutions, **changes})


@cache
def lite0() -> FeatureNetwork:
    return build_features("lite0", 32)


def batch(channels: int = 3, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    images = torch.rand(4, channels, 16, 16, generator=generator, dtype=dtype) * 2 - 1
    return images, F.one_hot(torch.arange(4) % 3, 3).to(dtype)


def gradients(judge: Any, ours: ProjectedDiscriminator, images: Tensor, labels: Tensor) -> Any:
    """Logits, the loss's gradient by the images, exact R1 and its gradient by the heads."""
    leaf = images.clone().requires_grad_()
    logits = judge(leaf, labels)
    loss = torch.stack([x.sigmoid().mean() for x in logits]).sum()
    (by_images,) = torch.autograd.grad(loss, leaf)
    penalty = r1_penalty(judge, images, labels)
    by_heads = torch.autograd.grad(penalty, list(ours.heads.parameters()), allow_unused=True)
    return [*(x.detach() for x in logits), by_images, penalty.detach(), *by_heads]


def assert_alike(got: Any, wanted: Any, tolerance: float) -> None:
    """Each tensor within `tolerance` of its largest value. Those that vanish but for rounding, as a
    bias's gradient in front of a batch norm, are measured by the largest of all."""
    largest = max(w.abs().max().item() for w in wanted if w is not None)
    for a, b in zip(got, wanted, strict=True):
        assert (a is None) == (b is None)
        if b is not None:
            bound = tolerance * max(b.abs().max().item(), 1e-4 * largest)
            torch.testing.assert_close(a, b, rtol=tolerance, atol=bound)


@pytest.mark.parametrize(
    ("name", "channels"),
    [("lite0", 1), ("lite0", 3), ("vgg16_bn", 3), ("deit_base_distilled", 3)],
)
def test_exact_r1_equals_the_plain_composition(name: str, channels: int) -> None:
    ours = build(exact(name)).double()
    weights = {} if name == "lite0" else {name: "random"}
    plain = PlainDiscriminator(ours, weights)
    images, labels = batch(channels, torch.float64)
    wanted = gradients(plain, ours, images, labels)
    assert_alike(gradients(ours, ours, images, labels), wanted, 1e-8)
    assert sum(g is not None and bool(g.abs().max() > 0) for g in wanted[3:]) > 10


def test_the_kernels_compute_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every op of the path by Triton, in the interpreter: logits, gradients and exact R1. Under
    create_graph a norm's backward kernel would be a constant to R1: it is never called there."""
    images, labels = batch()
    # The frozen features' own op has its test, and in the interpreter it takes minutes here.
    of_features = partial(bias_activation_, impl="reference")
    monkeypatch.setattr(frozen_conv, "bias_activation_", of_features)
    ours = build(lite0())
    with using("reference"):
        wanted = gradients(ours, ours, images, labels)

    kernel, of_the_package, modes = norm_file._backward, r1_penalty, []

    def watched(*arguments: Any) -> Any:
        modes.append(torch.is_grad_enabled())
        return kernel(*arguments)

    def alone(*arguments: Any) -> Tensor:
        modes.clear()
        penalty = of_the_package(*arguments)
        assert not modes
        return penalty

    monkeypatch.setattr(norm_file, "_backward", watched)
    monkeypatch.setitem(globals(), "r1_penalty", alone)
    with using("triton"):
        found = gradients(ours, ours, images, labels)
    assert_alike(found, wanted, 2e-3)
    torch.testing.assert_close(found[2], wanted[2], rtol=1e-3, atol=0)
    assert not modes  # the last derivative goes by the formula's graph: no kernel gets zeros


def test_batches_together_are_the_same_as_one_by_one() -> None:
    ours = build(lite0(), build_features("vgg16_bn", 32, weights="random"), resolutions=(16, 8))
    images, labels = batch()
    others = [images, images.flip(0), images * 0.5]
    together = ours.together(others, labels)
    assert len(together) == 3
    for one, several in zip(others, together, strict=True):
        for a, b in zip(ours(one, labels), several, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    parameters = list(ours.heads.parameters())
    loss = discriminator_loss(real=together[0], fake=together[1]).loss
    apart = discriminator_loss(real=ours(others[0], labels), fake=ours(others[1], labels)).loss
    assert_alike(
        torch.autograd.grad(loss, parameters, allow_unused=True),
        torch.autograd.grad(apart, parameters, allow_unused=True),
        1e-3,
    )


def test_images_are_prepared_once_for_all_backbones_of_a_size(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    calls = []

    def counted(images: Tensor, size: Any, norms: Any, **options: Any) -> Any:
        calls.append((size, len(norms)))
        return image_prep(images, size, norms, **options)

    monkeypatch.setattr("fasttrain.discriminator.projected.image_prep", counted)
    vgg = build_features("vgg16_bn", 32, weights="random")
    build(lite0(), vgg, resolutions=(16, 8))(*batch())
    assert calls == [((32, 32), 2)]
    calls.clear()
    larger = build_features("vgg16_bn", 64, weights="random")
    build(lite0(), larger, resolutions=(16, 8))(*batch())
    assert sorted(calls) == [((32, 32), 1), ((64, 64), 1)]


def test_bytes_are_judged_as_the_images_they_are() -> None:
    ours = build(lite0())
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (4, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels = batch()[1]
    for a, b in zip(ours(raw, labels), ours(raw / 127.5 - 1, labels), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


def test_precision_of_everything_and_for_a_while() -> None:
    ours = build(lite0())
    images, labels = batch()
    (full,) = ours(images, labels)
    ours.precision = torch.bfloat16
    (low,) = ours(images, labels)
    assert low.dtype == torch.bfloat16
    assert 0 < (low.float() - full).norm() < 0.2 * full.norm()
    with ours.in_precision(torch.float32):
        assert torch.equal(ours(images, labels)[0], full)
    assert torch.equal(ours(images, labels)[0], low)
    assert {p.dtype for p in ours.parameters()} == {torch.float32}
    low.float().sum().backward()
    assert {p.grad.dtype for p in ours.parameters() if p.grad is not None} == {torch.float32}


def test_agreement_of_the_precisions() -> None:
    ours = build(lite0())
    images, labels = batch()
    found = agreement(ours, images, labels)
    assert set(found) == {"lite0"}
    assert 0.97 < found["lite0"]["logits"] < 1
    assert 0.7 < found["lite0"]["gradient"] < 1
    assert all(parameter.grad is None for parameter in ours.parameters())
    assert all(parameter.requires_grad for parameter in ours.heads.parameters())
