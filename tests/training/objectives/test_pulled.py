"""R1 through features in other numbers than the heads': the same penalty, the same gradients."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.data import Batch
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.training.gan import Gan
from fasttrain.training.objectives.gan import r1_penalty
from fasttrain.training.objectives.pulled import pulled_r1
from tests.discriminator.test_projected import SmallFeatures, build

IMAGES = torch.rand(8, 3, 16, 16) * 2 - 1
LABELS = torch.eye(3)[torch.arange(8) % 3]


class Marked(torch.autograd.Function):
    """The identity, which notes whether TF32 is allowed in its passes of both orders."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, seen: list[bool]) -> Tensor:
        seen.append(torch.backends.cudnn.allow_tf32)
        ctx.seen = seen
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        return Marked.apply(grads[0], ctx.seen), None


def gradients(penalty: Tensor, judge: Any) -> list[Tensor]:
    parameters = [p for p in judge.parameters() if p.requires_grad]
    found = torch.autograd.grad(penalty, parameters, allow_unused=True)
    assert any(g is not None for g in found)
    return [torch.zeros(()) if g is None else g for g in found]


@pytest.mark.parametrize("resolutions", [(32, 16, 8, 4), (32, 16)])
def test_it_is_r1(resolutions: tuple[int, ...]) -> None:
    """With two backbones, and with fewer heads than maps."""
    judge = build("a", "b", resolutions=resolutions)
    expected = r1_penalty(judge, IMAGES, LABELS)
    pulled = pulled_r1(
        lambda images: judge.look(images, LABELS),
        lambda maps: (judge.judge(maps, LABELS), judge.judged(maps)),
        IMAGES,
        nullcontext,
    )
    torch.testing.assert_close(pulled, expected, rtol=1e-5, atol=0)
    for a, b in zip(gradients(pulled, judge), gradients(expected, judge), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5 * float(b.abs().max() + 1e-6))


def test_its_setting_says_in_what_the_features_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    """bfloat16 rounds them, TF32 is allowed in all of their passes and in none of the heads'."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    judge = build("a")
    features: list[bool] = []
    heads: list[bool] = []
    seen, judged = SmallFeatures.seen, judge.judge

    def marked(self: SmallFeatures, x: Tensor) -> list[Tensor]:
        return [Marked.apply(m, features) for m in seen(self, x)]

    monkeypatch.setattr(SmallFeatures, "seen", marked)
    monkeypatch.setattr(
        judge, "judge", lambda maps, labels: [Marked.apply(x, heads) for x in judged(maps, labels)]
    )
    part = Batch(IMAGES, LABELS, torch.arange(8), 1.0)
    results = {}
    for name in ("float32", "tf32", "bfloat16"):
        words = ["discriminator.norm_group=4", "r1.gamma=2.0", f"r1.features={name}"]
        settings = load_settings("digits-d2o-f", words, FinetuneSettings)
        features.clear()
        heads.clear()
        value = Gan(settings, judge).lazy_penalty(part, lambda part: part.images, 0)
        results[name] = [value.detach(), *gradients(value, judge)]
        assert len(features) >= 3 * len(SmallFeatures.channels)  # forward, J^T g, J d
        assert set(features) == {name == "tf32"}
        assert len(heads) >= 2
        assert set(heads) == {False}
        assert not torch.backends.cudnn.allow_tf32
    exact, same, low = (torch.cat([t.flatten() for t in r]) for r in results.values())
    torch.testing.assert_close(same, exact, rtol=1e-4, atol=1e-5)
    assert 1e-4 < float((low - exact).norm() / exact.norm()) < 0.1
    assert low.dtype == torch.float32
