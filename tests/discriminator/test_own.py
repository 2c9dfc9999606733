"""The diffusion model as a feature network, and what sees crops of images."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.augment import random_crop
from fasttrain.discriminator.own import OwnFeatures
from fasttrain.discriminator.projected import TRAINED
from fasttrain.models.features.network import build_features
from fasttrain.sampling.draws import Stream, latents
from fasttrain.settings import NetworkSettings
from tests.small_models import PLAIN, small_network

DIT = {
    "model_type": "DiT",
    "img_resolution": 8,
    "img_channels": 4,
    "prediction": {"kind": "flow"},
    "options": {"patch_size": 2, "hidden_size": 16, "depth": 3, "num_heads": 2},
}
EDM2 = {
    "model_type": "EDM2UNet",
    "img_resolution": 8,
    "img_channels": 3,
    "label_dim": 10,
    "model_channels": 16,
    "channel_mult": (1, 2),
    "num_blocks": 1,
    "attn_resolutions": (4,),
    "options": {"channels_per_head": 16},
}


@pytest.fixture(scope="module", params=[PLAIN, DIT, EDM2], ids=["SongUNet", "DiT", "EDM2"])
def network(request: pytest.FixtureRequest) -> Any:
    return small_network(NetworkSettings(**request.param))


def inputs(network: Any) -> tuple[Tensor, Tensor | None, Tensor]:
    shape = (network.img_channels, network.img_resolution, network.img_resolution)
    images = torch.randn(4, *shape, generator=torch.Generator().manual_seed(0))
    labels = torch.eye(network.label_dim)[:4] if network.label_dim else None
    return images, labels, torch.tensor([5, 6, 70, 8])


def test_the_maps_are_the_denoisers_own_of_noised_images(network: Any) -> None:
    features = OwnFeatures(network, (-0.5, 0.7), seed=3)
    images, labels, index = inputs(network)
    maps = features.look(images, labels, index, torch.float32)
    level = latents(3, Stream.JUDGED_LEVEL, index, (1, 1, 1))
    sigma = torch.exp(-0.5 + 0.7 * level)
    noisy = images + sigma * latents(3, Stream.JUDGED_NOISE, index, images.shape[1:])
    modules, kept = dict(network.model.named_modules()), {}
    for name, _, _ in network.model.judged():
        modules[name].register_forward_hook(
            lambda module, args, out, name=name: kept.update(
                {name: out[0] if isinstance(out, tuple) else out}
            )
        )
    network(noisy, sigma, labels)
    assert len(maps) == len(kept) >= 2
    for m, (name, channels, side) in zip(maps, network.model.judged(), strict=True):
        assert m.shape == (4, channels, side, side)
        whole = kept[name] if kept[name].dim() == 4 else kept[name].transpose(1, 2)
        torch.testing.assert_close(m.flatten(2), whole.flatten(2))


def test_noise_is_of_the_image_alone_and_gradients_reach_it(network: Any) -> None:
    features = OwnFeatures(network, (0.0, 1.0), seed=0)
    images, labels, index = inputs(network)
    whole = features.look(images, labels, index, torch.float32)
    some = None if labels is None else labels[2:]
    part = features.look(images[2:], some, index[2:], torch.float32)
    for a, b in zip(whole, part, strict=True):
        torch.testing.assert_close(a[2:], b, rtol=1e-4, atol=1e-5)
    images.requires_grad_()
    total = sum(m.square().sum() for m in features.look(images, labels, index, torch.float32))
    assert isinstance(total, Tensor)
    total.backward()
    assert images.grad is not None
    assert (images.grad.flatten(1).abs().amax(1) > 0).all()


def test_what_comes_after_the_last_map_is_not_computed(network: Any) -> None:
    features = OwnFeatures(network, (0.0, 1.0), seed=0)
    last = [m for m in network.model.modules() if not list(m.children())][-1]
    handle = last.register_forward_hook(lambda *_: pytest.fail("it ran"))
    try:
        images, labels, index = inputs(network)
        features.look(images, labels, index, torch.float32)
    finally:
        handle.remove()


def test_crops_are_parts_of_the_image_by_its_index() -> None:
    images = torch.arange(3 * 2 * 9 * 7).reshape(3, 2, 9, 7).float()
    index = torch.tensor([11, 12, 13])
    crops = random_crop(images, 4, 0, index)
    assert crops.shape == (3, 2, 4, 4)
    assert torch.equal(crops[1:], random_crop(images[1:], 4, 0, index[1:]))
    for image, crop in zip(images, crops, strict=True):
        top, left = divmod(int(crop[0, 0, 0] - image[0, 0, 0]), 7)
        assert torch.equal(image[:, top : top + 4, left : left + 4], crop)
    assert random_crop(images, 9, 0, index) is images
    assert random_crop(images, 8, 0, index).shape == (3, 2, 8, 7)
    images.requires_grad_()
    (gradient,) = torch.autograd.grad(random_crop(images, 4, 0, index).square().sum(), images)
    seen = torch.isin(images, crops)
    assert torch.equal(gradient, 2 * images * seen)


def test_a_vision_transformer_judges_crops_and_heads_see_its_maps() -> None:
    features = build_features("dino_vits16", 64, weights="random")
    judge = ProjectedDiscriminator([features], norm_group=2, resolutions=(4, 4, 4, 4), width=8)
    images = torch.randn(2, 3, 80, 80, requires_grad=True)
    index = torch.tensor([0, 1])
    (logits,) = judge(images, None, index)
    assert logits.shape == (2, 4)
    logits.sum().backward()
    assert images.grad is not None
    seen = images.grad.abs().sum((0, 1)) > 0
    assert 64 * 64 <= int(seen.sum()) < 80 * 80
    (again,) = judge(images, None, index)
    torch.testing.assert_close(logits, again)
    (other,) = judge(images, None, index + 7)
    assert not torch.allclose(logits, other)


def test_a_trained_copy_learns_up_to_its_last_map(network: Any) -> None:
    own = OwnFeatures(copy.deepcopy(network), (0.0, 1.0), seed=0, trained=True)
    frozen = OwnFeatures(copy.deepcopy(network), (0.0, 1.0), seed=0)
    images, labels, index = inputs(network)
    settings: dict[str, Any] = {"norm_group": 2, "resolutions": (8, 4), "width": 16}
    settings["label_dim"] = network.label_dim
    torch.manual_seed(0)
    judge = ProjectedDiscriminator([own], **settings)
    torch.manual_seed(0)
    as_before = ProjectedDiscriminator([frozen], **settings)
    logits = judge(images, labels, index)
    for ours, theirs in zip(logits, as_before(images, labels, index), strict=True):
        assert torch.equal(ours, theirs)  # it begins as the frozen one

    torch.stack([x.sum() for x in logits]).sum().backward()
    trained = {n: p for n, p in judge.heads.named_parameters() if p.requires_grad}
    assert all(p.grad is not None for p in trained.values())  # ZeRO would wait for one without
    own_names = {n.removeprefix(f"{TRAINED}.") for n in trained if n.startswith(TRAINED)}
    whole = dict(network.named_parameters())
    assert set() < own_names < set(whole)
    assert not any(p.requires_grad for p in as_before.features[0].parameters())

    with judge.frozen():  # the generator's step
        images.requires_grad_()
        again = judge(images, labels, index)
        (gradient,) = torch.autograd.grad(torch.stack([x.sum() for x in again]).sum(), images)
    assert (gradient.flatten(1).abs().amax(1) > 0).all()
    assert {n for n, p in judge.heads.named_parameters() if p.requires_grad} == set(trained)
