"""A number that is not one is NaN in the result, wherever it is in torch: a kernel that swallows it
lets a broken network train on. The interpreter has a GPU's maxima here (tests/hardware.py)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain_kernels import (
    HALF,
    attention,
    bias_activation_,
    ghost_batch_norm,
    group_norm,
    image_prep,
    logit_losses,
    power_iteration,
    resample2d,
    residual_scale,
    upsample_add,
)
from tests.kernels.support import DEVICE

BROKEN = (float("nan"), float("inf"), float("-inf"))
Op = Callable[..., Any]


def activated(activation: Any) -> Op:
    return lambda x, impl: bias_activation_(x.detach().clone(), None, activation, impl=impl)


OPS: dict[str, tuple[Op, tuple[int, ...]]] = {
    "none": (activated("none"), (1, 4, 3, 2)),
    "relu": (activated("relu"), (1, 4, 3, 2)),
    "relu6": (activated("relu6"), (1, 4, 3, 2)),
    "hinge": (lambda x, impl: logit_losses([x], [1], "hinge", impl=impl), (2, 3)),
    "hinge of fakes": (lambda x, impl: logit_losses([x], [-1], "hinge", impl=impl), (2, 3)),
    "softplus": (lambda x, impl: logit_losses([x], [1], impl=impl), (2, 3)),
    "group norm": (lambda x, impl: group_norm(x, groups=2, impl=impl), (1, 4, 3, 2)),
    "ghost batch norm": (
        lambda x, impl: ghost_batch_norm(
            x, x.new_ones(4), x.new_ones(4), group=2, activation="leaky_relu", impl=impl
        ),
        (4, 4, 3, 2),
    ),
    "attention": (lambda x, impl: attention(x, heads=1, impl=impl), (1, 6, 2, 2)),
    "residual sum": (lambda x, impl: residual_scale(x, x, scale=0.5, impl=impl), (1, 4, 3, 2)),
    "halving": (lambda x, impl: resample2d(x, "down", impl=impl), (1, 2, 4, 4)),
    "upsample_add": (lambda x, impl: upsample_add(x, impl=impl), (1, 2, 3, 3)),
    "image_prep": (lambda x, impl: image_prep(x, (8, 8), [HALF], impl=impl)[0], (1, 3, 4, 4)),
}


@pytest.mark.parametrize("broken", BROKEN)
@pytest.mark.parametrize("name", OPS)
def test_what_is_nan_in_torch_is_nan(name: str, broken: float) -> None:
    """In the result and, from a gradient that is finite, in the input's gradient. Where a weight of
    zero meets infinity the two may differ: a kernel reads a few more pixels, or fewer."""
    op, shape = OPS[name]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    x.view(-1)[5] = broken
    results: list[Sequence[Tensor]] = []
    for impl in ("triton", "reference"):
        leaf = x.to(DEVICE).clone().requires_grad_()
        y = op(leaf, impl)
        dx = torch.autograd.grad(y.sum(), leaf)[0] if y.requires_grad else leaf.detach()
        results.append((y.detach(), dx))
    for got, expected in zip(*results, strict=True):
        assert got.isnan().any() >= expected.isnan().any()
        if broken != broken:
            assert torch.equal(got.isnan(), expected.isnan())


@pytest.mark.parametrize("impl", ["triton", "reference"])
def test_a_weight_that_is_nan_breaks_its_spectral_norm(impl: Any) -> None:
    weight = torch.ones(3, 5, device=DEVICE)
    weight[1, 2] = float("nan")
    u, v = torch.ones(3, device=DEVICE) / 3**0.5, torch.ones(5, device=DEVICE) / 5**0.5
    power_iteration([weight], [u], [v], impl=impl)
    assert u.isnan().all()
    assert v.isnan().all()
