"""R1 through frozen features, which may be computed in fewer bits than the heads.

The discriminator is D(x) = h(F(x)) with features F that never train and heads h that do. With the
maps m = F(x) and their gradient g = grad_m sum h(m), R1 is the squared length of J^T g, J = dF/dx.
The heads' weights are in g alone, so of F only J is needed, once each way: J^T g, and in the
backward pass J d. Each is a pass of its own, computed in the features' own numbers, while h, its
gradient and the gradient's derivative stay float32.

    penalty = pulled_r1(look, judge, images, in_bfloat16)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor

__all__ = ["pulled_r1"]

Scope = Callable[[], AbstractContextManager[Any]]


class _Pulled(torch.autograd.Function):
    """g -> J^T g, and back d -> J d, both within a scope. J is a constant."""

    @staticmethod
    def forward(
        ctx: Any, scope: Scope, images: Tensor, maps: Sequence[Tensor], *gradients: Tensor
    ) -> Tensor:
        with torch.enable_grad(), scope():
            seeds = [g.detach().requires_grad_() for g in gradients]
            (pulled,) = torch.autograd.grad(maps, images, seeds, create_graph=True)
        ctx.scope, ctx.seeds, ctx.pulled = scope, seeds, pulled
        return pulled.detach()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        with ctx.scope():
            pushed = torch.autograd.grad(ctx.pulled, ctx.seeds, grads[0])
        return None, None, None, *pushed


def pulled_r1(
    look: Callable[[Tensor], Sequence[Sequence[Tensor]]],
    judge: Callable[[Sequence[Sequence[Tensor]]], tuple[Sequence[Tensor], Sequence[Tensor]]],
    images: Tensor,
    scope: Scope,
) -> Tensor:
    """`r1_penalty` of images [N, ...], a scalar, differentiable once in what `judge` trains.

    look: images -> the maps of each backbone; called, and differentiated, within `scope()`.
    judge: maps in float32, or float64 as they are -> logits, and those maps they depend on.
    """
    images = images.detach().requires_grad_()
    with scope():
        looked = look(images)
    leaves = [[_precise(m.detach()).requires_grad_() for m in backbone] for backbone in looked]
    logits, judged = judge(leaves)
    total = torch.stack([backbone.sum() for backbone in logits]).sum()
    gradients = torch.autograd.grad(total, judged, create_graph=True)
    pairs = zip(leaves, looked, strict=True)
    of = {id(leaf): m for own, maps in pairs for leaf, m in zip(own, maps, strict=True)}
    maps = [of[id(leaf)] for leaf in judged]
    lowered = [g.to(m.dtype) for g, m in zip(gradients, maps, strict=True)]
    pulled = cast(Tensor, _Pulled.apply(scope, images, maps, *lowered))
    return _precise(pulled).square().flatten(1).sum(1).mean()


def _precise(t: Tensor) -> Tensor:
    return t.to(torch.promote_types(t.dtype, torch.float32))
