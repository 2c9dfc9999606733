"""Discriminators of several processes that share batch norm groups, against one with all images."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor

from fasttrain.discriminator import ProjectedDiscriminator
from fasttrain.discriminator.peers import Peers, check_groups, check_processes, peers_of
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import ONE_PROCESS, World
from fasttrain.training.objectives.gan import (
    approximated_r1,
    discriminator_loss,
    generator_loss,
    r1_penalty,
)
from tests.discriminator.test_projected import batch, build
from tests.simulated_peers import in_threads, peers_of_threads

GROUP, IMAGES = 4, 8


def judge_of(peers: Peers | None) -> ProjectedDiscriminator:
    return build("one", "two", norm_group=GROUP, resolutions=(32, 16), peers=peers).double()


def taken(judge: ProjectedDiscriminator, own: slice) -> dict[str, list[Tensor]]:
    """All that training takes from a discriminator: losses over a process's images, and their
    gradients by fakes or by heads."""
    (real, labels), (made, _) = batch(IMAGES), batch(IMAGES, seed=1)
    real, made, labels = real.double()[own], made.double()[own], labels.double()[own]
    heads = list(judge.heads.parameters())
    fake = made.clone().requires_grad_()
    with judge.frozen():
        loss = generator_loss(judge(fake, labels))
        by_fakes = torch.autograd.grad(loss, fake)
    logits = judge.together([real, made, real + 0.01 * made], labels)
    judged = discriminator_loss(real=logits[0], fake=logits[1])
    total = judged.loss + 100 * approximated_r1(clean=logits[0], noisy=logits[2])
    by_heads = torch.autograd.grad(total, heads)
    penalty = r1_penalty(judge, real, labels)
    twice = torch.autograd.grad(penalty, heads, allow_unused=True)
    return {
        "losses": [loss.detach(), total.detach(), judged.real.detach(), penalty.detach()],
        "by fakes": list(by_fakes),
        "by heads": list(by_heads),
        "of exact r1": [g for g in twice if g is not None],
    }


@pytest.mark.parametrize("size", [2, 4])
def test_all_that_is_trained_with_is_that_of_one_process(size: int) -> None:
    """Also where two groups of ranks do not know of each other: eight images, groups of four."""
    wanted = taken(judge_of(None), slice(None))
    share, blocks = GROUP // size, IMAGES // GROUP
    peers = [one for _ in range(blocks) for one in peers_of_threads(size)]
    judges = [judge_of(one) for one in peers]  # one after the other: they draw from one generator
    ranks = in_threads(
        [
            partial(taken, judge, slice(rank * share, (rank + 1) * share))
            for rank, judge in enumerate(judges)
        ]
    )
    for name, expected in wanted.items():
        largest = max(value.abs().max().item() for value in expected)
        for place, value in enumerate(expected):
            parts = [rank[name][place] for rank in ranks]
            # A rank's loss is the mean over its own images.
            got = (
                torch.cat(parts) / len(ranks) if name == "by fakes" else torch.stack(parts).mean(0)
            )
            # A bias in front of a batch norm has no gradient but by rounding.
            torch.testing.assert_close(got, value, rtol=1e-9, atol=1e-11 * largest)


def test_alone_nothing_is_asked_of_others() -> None:
    def refuse(_: Tensor) -> None:
        raise AssertionError("a collective")

    judge = build(norm_group=GROUP, peers=Peers(1, 2, refuse))
    images, labels = batch(2)
    with pytest.raises(AssertionError, match="a collective"):
        judge(images, labels)
    with judge.alone():
        got = judge(images, labels)
    torch.testing.assert_close(got, build(norm_group=2)(images, labels))
    with pytest.raises(AssertionError, match="a collective"):
        judge(images, labels)


def test_which_ranks_share_a_group() -> None:
    """ImageNet's recipe: batch 512, groups of 128, on up to 512 processes."""
    sizes = {1: 1, 2: 1, 4: 1, 8: 2, 16: 4, 32: 8, 64: 16, 128: 32, 256: 64, 512: 128}
    assert {world: check_groups(512, 128, world) for world in sizes} == sizes
    assert peers_of(512, 128, ONE_PROCESS) is None
    with pytest.raises(UserError) as caught:
        check_groups(96, 32, 4)
    assert str(caught.value).startswith(
        "batch norm over groups of 32 images does not fit 4 processes with 24 images each: use "
        "1, 3, 6, 12, 24, 48, 96 processes"
    ), caught.value
    with pytest.raises(UserError, match="does not fit 15 processes"):
        check_groups(64, 16, 15)  # 4 images each would fit


def test_a_penalty_on_a_share_needs_its_groups_on_a_process() -> None:
    """Else each process penalises all of its images, silently."""
    words = ["batch=64", "discriminator.norm_group=16", "r1={gamma: 1, share: 0.5}"]
    settings = load_settings("digits-d2o-f", words, FinetuneSettings)
    for count in (1, 2):
        check_processes(settings, World(0, count, torch.device("cpu")))
    with pytest.raises(UserError, match=r"4 processes cannot share a batch of 64 .*: use 1, 2$"):
        check_processes(settings, World(0, 4, torch.device("cpu")))
