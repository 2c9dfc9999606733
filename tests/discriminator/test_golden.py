"""The published projected discriminator's numbers on small random weights: projected maps, logits,
losses, first gradients, the gradient penalty and its double backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.discriminator import Heads, Projector
from fasttrain.training.objectives.gan import generator_loss, r1_penalty

CASE = "projected-discriminator"
BATCH_NORM_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def projector_of(case: Any) -> Projector:
    projector = Projector(case.setting("in_channels"), cout=case.setting("cout"), seed=1)
    projector.load_state_dict(case.group("state/projector"), strict=True)
    return projector


def heads_of(case: Any) -> Heads:
    """The heads on projected maps 2 and 3, before the one power iteration of the case."""
    state = {
        key: value
        for key, value in case.group("state/heads_before").items()
        if not key.endswith(BATCH_NORM_STATISTICS)
    }
    blocks = [len({key.split(".")[3] for key in state if f"discs.{k}." in key}) for k in (0, 1)]
    heads = Heads(
        projector_of(case).out_channels[2:],
        resolutions=[8 * 2 ** (count - 1) for count in blocks],
        norm_group=len(case.input("feature0")),
    )
    heads.load_state_dict(state, strict=True)
    return heads


def iterated(heads: Heads) -> Heads:
    for module in heads.modules():
        if hasattr(module, "iterate"):
            module.iterate()
    return heads


@pytest.fixture
def case(golden: Callable[[str], Any]) -> Any:
    return golden(CASE)


@pytest.fixture
def maps(case: Any) -> list[Tensor]:
    return [case.input(f"feature{i}") for i in range(4)]


def discriminator_on_deep_features(
    case: Any, maps: list[Tensor]
) -> tuple[Callable[[Tensor, Tensor | None], list[Tensor]], Tensor, Heads]:
    """Features 2 and 3 side by side as one `images` tensor, and a discriminator of those."""
    projector, heads = projector_of(case), iterated(heads_of(case))
    flat = torch.cat([maps[2].flatten(1), maps[3].flatten(1)], dim=1)

    def discriminator(images: Tensor, class_labels: Tensor | None) -> list[Tensor]:
        deep = images.split([maps[2][0].numel(), maps[3][0].numel()], dim=1)
        second, third = deep[0].view_as(maps[2]), deep[1].view_as(maps[3])
        return [heads(projector([maps[0], maps[1], second, third])[2:], class_labels)]

    return discriminator, flat, heads


def test_projected_maps(case: Any, maps: list[Tensor]) -> None:
    for i, projected in enumerate(projector_of(case)(maps)):
        case.assert_close(projected, case.output(f"projected{i}"), f"projected map {i}")


def test_logits_loss_and_gradients(case: Any, maps: list[Tensor]) -> None:
    projector, heads = projector_of(case), iterated(heads_of(case))
    maps[2].requires_grad_()
    maps[3].requires_grad_()
    logits = heads(projector(maps)[2:])
    case.assert_close(logits, case.output("logits"), "logits")
    loss = generator_loss([logits])
    case.assert_close(loss.reshape(1), case.output("g_loss"), "loss")
    loss.backward()
    for i in (2, 3):
        assert maps[i].grad is not None
        case.assert_close(maps[i].grad, case.group("grad")[f"feature{i}"], f"gradient {i}")


def test_spectral_vectors_after_one_iteration(case: Any) -> None:
    state = iterated(heads_of(case)).state_dict()
    after = {
        key: value
        for key, value in case.group("state/heads_after").items()
        if not key.endswith(BATCH_NORM_STATISTICS)
    }
    assert after
    for key, expected in after.items():
        case.assert_close(state[key], expected, key)


def test_gradient_penalty_of_each_sample(case: Any, maps: list[Tensor]) -> None:
    discriminator, flat, _ = discriminator_on_deep_features(case, maps)
    flat.requires_grad_()
    (gradient,) = torch.autograd.grad(discriminator(flat, None)[0].sum(), flat)
    case.assert_close(gradient.square().sum(1), case.output("r1_penalty"), "penalty")


def test_gradient_penalty_and_its_double_backward(case: Any, maps: list[Tensor]) -> None:
    discriminator, flat, heads = discriminator_on_deep_features(case, maps)
    penalty = r1_penalty(discriminator, flat, None)
    case.assert_close(penalty, case.output("r1_penalty").mean(), "mean penalty")
    (penalty / 2).backward()
    parameters = dict(heads.named_parameters())
    expected = case.group("grad_r1")
    assert expected
    for key, gradient in expected.items():
        assert parameters[key].grad is not None
        case.assert_close(parameters[key].grad, gradient, f"second-order gradient of {key}")
