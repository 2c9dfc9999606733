"""The whole discriminator on a small feature network: what trains, what is frozen, what is saved,
where gradients go, and that batch splits change nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.discriminator import ProjectedDiscriminator, SpectralConv2d
from fasttrain.system.errors import UserError
from fasttrain.training.objectives.gan import discriminator_loss, generator_loss, r1_penalty
from fasttrain_kernels import HALF, image_prep


class SmallFeatures(nn.Module):
    """Four maps of 16, 8, 4, 2 px, from images of one or three channels."""

    channels = (4, 5, 6, 7)
    norm = HALF
    crops, pyramid = False, True

    def __init__(self, name: str = "small") -> None:
        super().__init__()
        self.name = name
        self.first = nn.BatchNorm2d(3)
        self.convs = nn.ModuleList(nn.Conv2d(3, width, 3, padding=1) for width in self.channels)
        self.saw_gradients: list[bool] = []

    @property
    def dtype(self) -> torch.dtype:
        return self.convs[0].weight.dtype

    def size(self, images: Tensor) -> tuple[int, int]:
        return (16, 16)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.maps(*image_prep(images, (16, 16), [self.norm], dtype=self.dtype))

    def maps(self, prepared: Tensor) -> list[Tensor]:
        self.saw_gradients.append(torch.is_grad_enabled())
        network = copy.deepcopy(self).to(prepared.dtype) if prepared.dtype != self.dtype else self
        return network.seen(prepared)

    def seen(self, x: Tensor) -> list[Tensor]:
        x = self.first(x)
        return [torch.tanh(conv(F.avg_pool2d(x, 2**i))) for i, conv in enumerate(self.convs)]


def build(*names: str, **settings: Any) -> ProjectedDiscriminator:
    torch.manual_seed(2)
    chosen: dict[str, Any] = {
        "label_dim": 3,
        "norm_group": 4,
        "cout": 8,
        "resolutions": (32, 16, 8, 4),
        "width": 16,
    }
    chosen.update(settings)
    return ProjectedDiscriminator([SmallFeatures(name) for name in names or ("small",)], **chosen)


def batch(n: int = 8, channels: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    images = torch.rand(n, channels, 8, 8, generator=generator) * 2 - 1
    return images, F.one_hot(torch.arange(n) % 3, 3).float()


def test_logits_are_the_parts_in_sequence_for_each_backbone() -> None:
    discriminator = build("one", "two")
    images, labels = batch()
    logits = discriminator(images, labels)
    assert len(logits) == 2
    for network, actual in zip(discriminator.features, logits, strict=True):
        maps = discriminator.projectors[network.name](network(images))
        torch.testing.assert_close(actual, discriminator.heads[network.name](maps, labels))
    first, second = (p.state_dict() for p in discriminator.projectors.values())
    assert not any(torch.equal(first[key], second[key]) for key in first)


def test_only_the_heads_train_and_the_features_are_not_saved() -> None:
    discriminator = build().train()
    inside = {id(parameter) for parameter in discriminator.heads.parameters()}
    assert inside == {id(parameter) for parameter in discriminator.parameters()}
    saved = discriminator.state_dict()
    assert {key.split(".")[0] for key in saved} == {"heads", "projectors"}
    network = discriminator.features[0]
    assert not network.training
    assert not any(parameter.requires_grad for parameter in network.parameters())
    before = copy.deepcopy(network.state_dict())
    images, labels = batch()
    discriminator_loss(
        real=discriminator(images, labels), fake=discriminator(-images, labels)
    ).loss.backward()
    assert all(parameter.grad is not None for parameter in discriminator.parameters())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_features_move_with_the_module() -> None:
    discriminator = build().double()
    assert discriminator.features[0].convs[0].weight.dtype == torch.float64
    images, labels = batch()
    assert discriminator(images.double(), labels)[0].dtype == torch.float64


def test_frozen_sends_gradients_to_images_only() -> None:
    discriminator = build()
    discriminator.heads["small"].mini_discs[0].main[0].main[0].bias.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in discriminator.parameters()]
    images, labels = batch()
    images.requires_grad_()
    with discriminator.frozen():
        generator_loss(discriminator(images, labels)).backward()
    assert images.grad is not None
    assert images.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in discriminator.parameters())
    assert [parameter.requires_grad for parameter in discriminator.parameters()] == flags
    with pytest.raises(RuntimeError, match="inside"), discriminator.frozen():
        raise RuntimeError("inside")
    assert [parameter.requires_grad for parameter in discriminator.parameters()] == flags


def test_gradients_of_images_are_those_of_the_unfrozen_discriminator() -> None:
    discriminator = build()
    images, labels = batch()
    images.requires_grad_()
    (expected,) = torch.autograd.grad(generator_loss(discriminator(images, labels)), images)
    with discriminator.frozen():
        (actual,) = torch.autograd.grad(generator_loss(discriminator(images, labels)), images)
    torch.testing.assert_close(actual, expected)


def test_no_graph_is_kept_before_the_heads_without_image_gradients() -> None:
    discriminator = build()
    images, labels = batch()
    discriminator(images, labels)
    discriminator(images.requires_grad_(), labels)
    assert discriminator.features[0].saw_gradients == [False, True]


def gradients(discriminator: ProjectedDiscriminator, parts: int) -> dict[str, Tensor]:
    """Of one discriminator step and one penalty, accumulated over equal parts of the batch."""
    images, labels = batch()
    fakes, _ = batch(seed=1)
    discriminator.zero_grad()
    chunks = zip(images.chunk(parts), fakes.chunk(parts), labels.chunk(parts), strict=True)
    for real, fake, label in chunks:
        logits = {"real": discriminator(real, label), "fake": discriminator(fake, label)}
        loss = discriminator_loss(**logits).loss
        penalty = r1_penalty(discriminator, real, label)
        ((loss + 0.1 * penalty) / parts).backward()
    return {
        name: parameter.grad.clone()
        for name, parameter in discriminator.named_parameters()
        if parameter.grad is not None
    }


def test_gradients_do_not_depend_on_the_micro_batch() -> None:
    discriminator = build("one", "two")
    whole, split = gradients(discriminator, 1), gradients(discriminator, 2)
    assert len(whole) == len(list(discriminator.parameters()))
    torch.testing.assert_close(split, whole, atol=1e-5, rtol=1e-3)


def test_forward_changes_no_state_and_iterate_moves_every_spectral_norm() -> None:
    discriminator = build("one", "two").train()
    with torch.no_grad():
        for parameter in discriminator.heads.parameters():  # away from the converged start
            parameter.add_(torch.randn_like(parameter))
    before = copy.deepcopy(discriminator.state_dict())
    discriminator(*batch())
    after = discriminator.state_dict()
    assert all(torch.equal(value, before[key]) for key, value in after.items())
    spectral = [m for m in discriminator.modules() if isinstance(m, SpectralConv2d)]
    vectors = [module.weight_v.clone() for module in spectral]
    discriminator.iterate_spectral_norm()
    assert len(vectors) == 2 * (3 + 2 + 1 + 1)
    for module, vector in zip(spectral, vectors, strict=True):
        assert not torch.equal(module.weight_v, vector)


def test_a_saved_state_gives_the_same_logits() -> None:
    first = build(seed=1)
    second = build(seed=2)
    second.features[0].load_state_dict(first.features[0].state_dict())
    images, labels = batch()
    assert not torch.equal(first(images, labels)[0], second(images, labels)[0])
    second.load_state_dict(first.state_dict(), strict=True)
    assert torch.equal(first(images, labels)[0], second(images, labels)[0])


def test_one_channel_images_and_no_classes() -> None:
    discriminator = build(label_dim=0)
    images, _ = batch(channels=1)
    images.requires_grad_()
    with discriminator.frozen():
        generator_loss(discriminator(images)).backward()
    assert images.grad is not None
    assert images.grad.flatten(1).abs().sum(1).min() > 0


def test_needs_feature_networks_of_different_names() -> None:
    with pytest.raises(UserError, match=r"\['same', 'same'\].*each only once"):
        build("same", "same")
    with pytest.raises(UserError, match="one or more"):
        ProjectedDiscriminator([], norm_group=4)


def smooth_and_noise(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Reals are smooth, fakes are noise of about the same mean and contrast."""
    fake, labels = batch(n, seed=2 * seed)
    real = 3 * F.avg_pool2d(batch(n, seed=2 * seed + 1)[0], 3, stride=1, padding=1)
    return real, fake, labels


def test_a_few_steps_tell_unseen_reals_from_fakes() -> None:
    discriminator = build(width=32)
    optimizer = torch.optim.Adam(discriminator.heads.parameters(), lr=2e-3, betas=(0.0, 0.99))

    def told_apart() -> float:
        real, fake, labels = smooth_and_noise(64, seed=1000)
        scores = [discriminator(images, labels)[0].mean(1) for images in (real, fake)]
        return (scores[0] > scores[1]).float().mean().item()

    assert told_apart() < 0.7
    for step in range(40):
        real, fake, labels = smooth_and_noise(16, seed=step)
        logits = discriminator(real, labels), discriminator(fake, labels)
        optimizer.zero_grad()
        discriminator_loss(real=logits[0], fake=logits[1]).loss.backward()
        optimizer.step()
        discriminator.iterate_spectral_norm()
    assert told_apart() > 0.85
