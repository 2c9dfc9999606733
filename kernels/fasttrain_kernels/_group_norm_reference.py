"""Plain torch for `group_norm`, whose docstring has the formulas, and the check of its
arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from fasttrain_kernels.statistics import statistics_shape

__all__ = [
    "LEAK",
    "Activation",
    "check_arguments",
    "differentiable_gradients",
    "group_norm_reference",
    "small_gradients",
]

Activation = Literal["none", "silu", "leaky_relu"]
LEAK = 0.2
"""Slope of the leaky ReLU below zero; the kernels have it as a constant."""


def group_norm_reference(
    x: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    groups: int,
    eps: float = 1e-5,
    shift_in: Tensor | None = None,
    scale: Tensor | None = None,
    shift: Tensor | None = None,
    activation: Activation = "silu",
) -> Tensor:
    """Plain torch, any device and floating dtype, differentiable to any order.

    Computes in float32 (float64 for a float64 x) and returns x.dtype. A modulated norm runs as the
    norm of one sample with N C channels: k and b are then its weight and bias, and the modulation
    costs no pass over the activation.
    """
    dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
    h = x.to(dtype)
    if shift_in is not None:
        h = h + _across(shift_in, h)
    k = None if weight is None else weight.to(dtype)
    b = None if bias is None else bias.to(dtype)
    if k is None and b is not None:  # a bias alone has no backward in torch's CPU kernel
        k = torch.ones_like(b)
    if x.numel() == 0:  # sums over nothing, so gradients are zeros; torch's group norm has NaN
        y = h
        for rows in (k, b, scale, shift):
            y = y if rows is None else y + _across(rows, h)
    elif scale is None and shift is None:
        y = _plain_norm(h, groups, k, b, eps)
    else:
        if scale is not None:
            factor = scale.to(dtype) + 1
            k = factor if k is None else factor * k
            b = None if b is None else factor * b
        if shift is not None:
            b = shift.to(dtype) if b is None else b + shift.to(dtype)
            k = torch.ones_like(b) if k is None else k
        samples, channels = x.shape[:2]
        k, b = (None if t is None else t.expand(samples, channels).reshape(-1) for t in (k, b))
        one = h.reshape(1, samples * channels, *x.shape[2:])
        y = _plain_norm(one, samples * groups, k, b, eps).view(x.shape)
    if activation == "silu":
        y = F.silu(y, inplace=not y.requires_grad)
    elif activation == "leaky_relu":
        y = F.leaky_relu(y, LEAK)
    return y.to(x.dtype)


def _plain_norm(
    h: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> Tensor:
    """torch's group norm. On a CPU its backward reads a null pointer where the input lies in
    channels_last and its gradient is not asked for (torch 2.13: a segmentation fault), and its
    forward-mode derivative takes contiguous memory alone."""
    if not torch.compiler.is_compiling() and unpack_dual(h).tangent is not None:
        h = h.clone(memory_format=torch.contiguous_format)
    trains = any(t is not None and t.requires_grad for t in (weight, bias))
    if trains and torch.is_grad_enabled() and not h.is_cuda and not h.is_contiguous():
        return cast(Tensor, _NormOfAnyGradients.apply(h, groups, weight, bias, eps))
    return F.group_norm(h, groups, weight, bias, eps)


class _NormOfAnyGradients(torch.autograd.Function):
    """The same numbers, from a backward pass that always works out the input's gradient."""

    @staticmethod
    def forward(
        ctx: Any, h: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
    ) -> Tensor:
        sizes = (h.shape[0], h.shape[1], h[0, 0].numel(), groups)
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        layout = layouts.get(h.dim(), torch.contiguous_format)
        if not h.is_contiguous(memory_format=layout):
            layout = torch.contiguous_format
        y, mean, rstd = torch.native_group_norm(_laid_out(h, layout), weight, bias, *sizes, eps)
        ctx.save_for_backward(h, weight, bias, mean, rstd)
        ctx.sizes, ctx.eps, ctx.layout = sizes, eps, layout
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (dy,), needs = grads, ctx.needs_input_grad
        *inputs, mean, rstd = ctx.saved_tensors
        if not torch.is_grad_enabled():
            dy, h = (_laid_out(t, ctx.layout) for t in (dy, inputs[0]))  # both: else it is wrong
            dh, dweight, dbias = torch.ops.aten.native_group_norm_backward(
                dy, h, mean, rstd, inputs[1], *ctx.sizes, [True, needs[2], needs[3]]
            )
        else:  # under create_graph: torch's own graph, through views of what was saved
            views: list[Any] = [None if t is None else t.view_as(t) for t in inputs]
            h, weight, bias = views
            h = h if h.requires_grad else h.detach().requires_grad_()
            y = F.group_norm(h, ctx.sizes[3], weight, bias, ctx.eps)
            wanted = [h, *(t for t, need in ((weight, needs[2]), (bias, needs[3])) if need)]
            found = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
            dh = next(found)
            dweight, dbias = (next(found) if need else None for need in needs[2:4])
        return dh if needs[0] else None, None, dweight, dbias, None


def _laid_out(t: Tensor, layout: torch.memory_format) -> Tensor:
    """t in a memory format, with its very strides: torch doubts those of a single sample."""
    strides = torch.empty(t.shape, device="meta", memory_format=layout).stride()
    return t.contiguous(memory_format=layout).as_strided(t.shape, strides)


def _across(rows: Tensor, h: Tensor) -> Tensor:
    """Values of channels, [C] or [N, C], in the dtype of h and broadcast along its pixels."""
    return rows.to(h.dtype).reshape(rows.shape + (1,) * (h.dim() - 2))


def differentiable_gradients(ctx: Any, dy: Tensor, inputs: list[Any]) -> list[Tensor | None]:
    # Views: the derivative by one input must not run on through another that was made of it.
    views: list[Any] = [None if t is None else t.view_as(t) for t in inputs]
    x, weight, bias, shift_in, scale, shift = views
    y = group_norm_reference(
        x, weight, bias, groups=ctx.groups, eps=ctx.eps,
        shift_in=shift_in, scale=scale, shift=shift, activation=ctx.activation,
    )  # fmt: skip
    needs = ctx.needs_input_grad[:6]
    wanted = [v for v, need in zip(views, needs, strict=True) if need]
    grads = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(grads) if need else None for need in needs]


def small_gradients(
    sums: Tensor, inputs: Sequence[Tensor | None], needs: Sequence[bool]
) -> list[Tensor | None]:
    """Gradients of weight, bias, shift_in, scale and shift from the kernels' A, B and sums of dx;
    None for those that need none."""
    grads: list[Tensor | None] = [None] * 6
    if not any(needs[1:]):
        return grads[1:]
    _, weight, bias, _, scale, _ = inputs
    a, b = sums[0], sums[1]
    if needs[1]:
        grads[1] = (a if scale is None else (scale.float() + 1) * a).sum(0)
    if needs[2]:
        grads[2] = (b if scale is None else (scale.float() + 1) * b).sum(0)
    if needs[3]:
        grads[3] = sums[2]
    if needs[4]:
        dscale = a if weight is None else weight.float() * a
        grads[4] = dscale if bias is None else dscale + bias.float() * b
    if needs[5]:
        grads[5] = b
    return [
        g if g is None or t is None else g.to(t.dtype) for g, t in zip(grads, inputs, strict=True)
    ][1:]


def check_arguments(
    x: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    groups: int,
    shift_in: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    activation: str,
    statistics: Tensor | None,
) -> None:
    if x.dim() < 2 or not x.is_floating_point():
        raise ValueError(
            f"x must be a floating-point tensor [N, C, ...], got {x.dtype} {list(x.shape)}"
        )
    samples, channels = x.shape[:2]
    if groups < 1 or channels % groups:
        raise ValueError(
            f"groups must divide the channels: got {channels} channels, {groups} groups"
        )
    if activation not in get_args(Activation):
        raise ValueError(f"activation is one of {get_args(Activation)}, not {activation!r}")
    for name, value in (("weight", weight), ("bias", bias)):
        if value is not None and value.shape != (channels,):
            raise ValueError(f"{name} must be [{channels}] as x has, got {list(value.shape)}")
    for name, value in (("shift_in", shift_in), ("scale", scale), ("shift", shift)):
        if value is not None and value.shape != (samples, channels):
            raise ValueError(
                f"{name} must be [{samples}, {channels}] as x has, got {list(value.shape)}"
            )
    if statistics is not None:
        wanted = statistics_shape(x)
        if statistics.shape != wanted or statistics.dtype != torch.float32:
            raise ValueError(
                f"statistics must be torch.float32 {list(wanted)} as x has, got "
                f"{statistics.dtype} {list(statistics.shape)}"
            )
