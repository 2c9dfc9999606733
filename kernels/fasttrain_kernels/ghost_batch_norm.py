r"""Batch norm over groups of consecutive images ("ghost" batch norm, Hoffer et al., "Train longer,
generalize better", arXiv 1705.08741), fused with the leaky ReLU that follows it in a discriminator.

For each channel and each group of g images of H x W pixels, M = g H W values::

    xhat = (x - mean) r,     mean = sum(x) / M,     r = (sum((x - mean)^2) / M + eps)^(-1/2)
    y    = leaky_relu(weight xhat + bias, 0.2)      or without the leaky ReLU

In channels_last memory a group of images is one image of g H rows, and this norm its group norm
with groups of a single channel: the kernels of `group_norm` run on that view, without a copy, two
passes over the activation forward and three backward where eager torch takes five and eight.

    y = ghost_batch_norm(x, weight, bias, group=16, activation="leaky_relu")

Groups may span processes: `spanning_batch_norm`.
"""

from __future__ import annotations

from functools import partial
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels._group_norm_reference import LEAK
from fasttrain_kernels.dispatch import Impl, in_channels_last, on_cpu, resolve
from fasttrain_kernels.group_norm import normalized
from fasttrain_kernels.spanning_batch_norm import Gather, spanning, spanning_reference

__all__ = ["ghost_batch_norm", "ghost_batch_norm_reference"]

Activation = Literal["none", "leaky_relu"]


def ghost_batch_norm_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    group: int,
    eps: float = 1e-5,
    activation: Activation = "none",
) -> Tensor:
    """Plain torch, any device and floating dtype, differentiable to any order. Computes in float32
    (float64 for float64) and returns x.dtype; bfloat16 in channels_last on a CPU keeps its
    memory format."""
    if x.dtype == torch.bfloat16 and on_cpu(x) and in_channels_last(x):
        # A group at a time, cast in the cache: a third of the time of the copies below.
        norm = partial(ghost_batch_norm_reference, group=group, eps=eps, activation=activation)
        parts = [norm(part.float(), weight, bias).to(x.dtype) for part in x.split(group)]
        return torch.cat(parts) if len(parts) > 1 else parts[0]
    samples, channels, height, width = x.shape
    groups = samples // group
    dtype = torch.promote_types(x.dtype, torch.float32)
    h, weight, bias = x.to(dtype), weight.to(dtype), bias.to(dtype)
    if groups == 1:
        y = _batch_norm(h, weight, bias, eps)
    else:
        # The groups move into the channels, where torch's batch norm keeps statistics apart: twice
        # as fast on a CPU as a loop over groups or var_mean, and differentiable twice.
        h = h.reshape(groups, group, channels, height, width).transpose(0, 1)
        h = h.reshape(group, groups * channels, height, width)
        weight, bias = weight.repeat(groups), bias.repeat(groups)
        y = _batch_norm(h, weight, bias, eps)
        y = y.reshape(group, groups, channels, height, width).transpose(0, 1).reshape(x.shape)
    if activation == "leaky_relu":
        y = F.leaky_relu(y, LEAK)
    return y.to(x.dtype)


def _batch_norm(h: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """torch's batch norm, differentiable to any order. Its own second derivative holds the mean and
    the deviation for constants, so that a third is wrong, silently: there the formula takes over.
    """
    needed = torch.is_grad_enabled() and any(t.requires_grad for t in (h, weight, bias))
    if not needed or torch.compiler.is_compiling():
        return F.batch_norm(h, None, None, weight, bias, training=True, eps=eps)
    passing: list[Tensor] = []
    h, weight, bias = _Inputs.apply(h, weight, bias, eps, passing)
    y = F.batch_norm(h, None, None, weight, bias, training=True, eps=eps)
    return cast(Tensor, _Output.apply(y, passing))


class _Output(torch.autograd.Function):
    """Passes y on, and leaves dy for the inputs, which come next in a backward pass."""

    @staticmethod
    def forward(ctx: Any, y: Tensor, passing: list[Tensor]) -> Tensor:
        ctx.passing = passing
        return y.view_as(y)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        ctx.passing[:] = grads
        return grads[0], None


class _Inputs(torch.autograd.Function):
    """Passes inputs on, and in a backward pass under create_graph their gradients with what the
    formula needs."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, weight: Tensor, bias: Tensor, eps: float, passing: list[Tensor]
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(h, weight, bias)
        ctx.eps, ctx.passing = eps, passing
        return h.view_as(h), weight.view_as(weight), bias.view_as(bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        # Without grad mode the gradients may also be those of torch's second derivative, and
        # nothing has passed. With it that never runs: `_Gradients` takes its place.
        if torch.is_grad_enabled():
            grads = _Gradients.apply(*grads, *ctx.saved_tensors, *ctx.passing, ctx.eps)
        ctx.passing.clear()
        return (*grads, None, None)


class _Gradients(torch.autograd.Function):
    """Passes gradients on. Differentiated once, torch goes on; under create_graph the formula."""

    @staticmethod
    def forward(ctx: Any, dh: Tensor, dweight: Tensor, dbias: Tensor, *inputs: Any) -> Any:
        *tensors, ctx.eps = inputs
        ctx.save_for_backward(*tensors)
        return dh.view_as(dh), dweight.view_as(dweight), dbias.view_as(dbias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        if not torch.is_grad_enabled():
            return (*grads, None, None, None, None, None)
        views = [t.view_as(t) for t in ctx.saved_tensors]
        views = [t if t.requires_grad else t.requires_grad_() for t in views]
        h, weight, bias, dy = views
        y = _formula(h, weight, bias, ctx.eps)
        first = torch.autograd.grad(y, (h, weight, bias), dy, create_graph=True)
        second = torch.autograd.grad(first, views, grads, create_graph=True, allow_unused=True)
        return (None, None, None, *second, None)


def _formula(h: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    centred = h - h.mean((0, 2, 3), keepdim=True)
    rstd = (centred.square().mean((0, 2, 3), keepdim=True) + eps).rsqrt()
    return centred * rstd * weight.view(-1, 1, 1) + bias.view(-1, 1, 1)


def ghost_batch_norm(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    group: int,
    eps: float = 1e-5,
    activation: Activation = "none",
    gather: Gather | None = None,
    impl: Impl = "auto",
) -> Tensor:
    """Batch norm of each `group` consecutive images by their own statistics; no running ones.

    Args:
        x: [N, C, H, W], float32, bfloat16 or float16; the reference also takes float64. The kernels
            want channels_last, and copy what lies otherwise.
        weight, bias: [C], of any floating dtype.
        group: images that share statistics; divides N. With `gather`, those of them in x.
        eps: added to the variance (biased) under the root.
        activation: "leaky_relu" ends with a leaky ReLU of slope 0.2, "none" does not.
        gather: for groups that span processes: the tensors of all processes that have `group`
            images of each, [P, ...], from one's own; each must call this op in the same order, with
            as many images. Differentiable to any order.
        impl: see `fasttrain_kernels.dispatch.resolve`.

    Returns:
        Shape and dtype of x; channels_last from the kernels. Statistics are float32.

    Gradients: for x, weight and bias; first order by the kernels, higher orders by plain torch.

    Raises:
        ValueError: shapes that do not fit, a group that does not divide N, an unknown activation.
    """
    if x.dim() != 4 or not x.is_floating_point():
        raise ValueError(
            f"x must be a floating-point tensor [N, C, H, W], got {x.dtype} {list(x.shape)}"
        )
    samples, channels, height, width = x.shape
    for name, value in (("weight", weight), ("bias", bias)):
        if value.shape != (channels,):
            raise ValueError(f"{name} must be [{channels}] as x has, got {list(value.shape)}")
    if group < 1 or samples % group:
        raise ValueError(f"group must divide the images: got {samples} images, group {group}")
    if activation not in ("none", "leaky_relu"):
        raise ValueError(f"activation is 'none' or 'leaky_relu', not {activation!r}")
    if resolve(impl, x) == "reference":
        if gather is not None:
            return spanning_reference(
                x, weight, bias, group=group, gather=gather, eps=eps, activation=activation
            )
        return ghost_batch_norm_reference(
            x, weight, bias, group=group, eps=eps, activation=activation
        )
    pixels = x.permute(0, 2, 3, 1).contiguous()
    tall = pixels.view(samples // group, group * height, width, channels).permute(0, 3, 1, 2)
    weight, bias = weight.contiguous(), bias.contiguous()
    if gather is not None:
        y = spanning(tall, weight, bias, gather=gather, eps=eps, activation=activation)
    else:
        y = normalized(tall, weight, bias, groups=channels, eps=eps, activation=activation)
    return y.permute(0, 2, 3, 1).view(samples, height, width, channels).permute(0, 3, 1, 2)
