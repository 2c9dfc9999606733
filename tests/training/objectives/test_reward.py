"""The reward by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fasttrain.models.features.network import build_features
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.training.objectives.reward import OwnClass, discriminant, new_reward, pooled

FEATURES = torch.tensor([[-1.0, 0.5], [1.0, -0.5], [3.0, 2.5], [5.0, 1.5]])
LABELS = torch.eye(2)[[0, 0, 1, 1]]
"""Means (0, 0) and (4, 2); covariance within classes [[1, -0.5], [-0.5, 0.25]]."""


def test_logits_are_those_of_gaussians_with_one_covariance() -> None:
    slopes, offsets = discriminant([(FEATURES[:3], LABELS[:3]), (FEATURES[3:], LABELS[3:])])
    covariance = torch.tensor([[0.9625, -0.45], [-0.45, 0.2875]])  # 0.9 S + 0.1 * 1.25 / 2
    x = torch.tensor([[1.0, 0.0], [-2.0, 3.0], [2.0, 1.0]])
    away = torch.stack([x, x - torch.tensor([4.0, 2.0])])
    expected = (-(away @ covariance.inverse() * away).sum(2).T / 2).log_softmax(1)
    found = (x @ slopes + offsets).log_softmax(1)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert found[2].exp().tolist() == pytest.approx([0.5, 0.5], abs=1e-5)  # in the middle


def test_bytes_are_the_images_that_they_stand_for() -> None:
    draws = torch.Generator().manual_seed(0)
    levels = torch.randint(0, 256, (3, 1, 8, 8), generator=draws, dtype=torch.uint8)
    features = build_features("lite0", 32)
    expected = pooled(features, levels.float() / 127.5 - 1)
    torch.testing.assert_close(pooled(features, levels), expected, rtol=1e-4, atol=1e-4)


def test_a_class_without_images_is_an_error() -> None:
    with pytest.raises(UserError, match="class 2 has none among the first 4"):
        discriminant([(FEATURES, torch.cat([LABELS, torch.zeros(4, 1)], 1))])


def test_it_is_the_own_classs_and_rises_along_its_gradient() -> None:
    draws = torch.Generator().manual_seed(0)
    images, labels = torch.rand(12, 1, 8, 8, generator=draws) * 2 - 1, torch.eye(3).repeat(4, 1)
    features = build_features("lite0", 32)
    reward = OwnClass(features, *discriminant([(pooled(features, images), labels)]))
    found, others = reward(images, labels), reward(images, labels.roll(1, 1))
    assert (found > others).all()  # of the very images that it is made of
    some = images[:3].clone().requires_grad_()

    def total(x: Tensor) -> Tensor:
        return reward(x, labels[1:4]).sum()  # of other classes

    (gradient,) = torch.autograd.grad(total(some), some)
    direction = gradient / gradient.norm()
    ahead, behind = (total(some.detach() + s * direction).item() for s in (1e-2, -1e-2))
    assert (ahead - behind) / 2e-2 == pytest.approx(gradient.norm().item(), rel=0.1)


def test_settings_without_classes_or_images_are_refused() -> None:
    changes = ["reward={weight: 1.0}", "network.label_dim=0", "discriminator.conditional=false"]
    settings = load_settings("digits-d2o-f", changes, FinetuneSettings)
    with pytest.raises(UserError, match="own_class needs classes"):
        new_reward(settings, torch.device("cpu"))
    wrong = ["reward={weight: 1.0, features: {name: self}}"]
    with pytest.raises(UserError, match="self is of noised images"):
        load_settings("digits-d2o-f", wrong, FinetuneSettings)
