r"""Ghost batch norm whose groups span processes: each of P processes has g images of every group.

For each channel and each group, over the M = P g H W values that all P have of it::

    mean = sum(mean_p) / P          var = sum(var_p + (mean_p - mean)^2) / P       (Chan et al.)
    xhat = (x - mean) r,            r   = (var + eps)^(-1/2)
    y    = leaky_relu(weight xhat + bias, 0.2)        or without the leaky ReLU

from each process's own mean_p and var_p, which are the only thing that is sent. Backward, with dz
the gradient before the leaky ReLU, and sums over all P processes that are sent likewise::

    dx      = r weight (dz - sum(dz) / M - xhat sum(dz xhat) / M)
    dweight = sum of this process's dz xhat         dbias = sum of this process's dz

`gather` is the caller's: it takes a tensor and gives those of all processes, [P, ...], and is
differentiable to any order, its gradients being sums over processes. So a first order costs one
call forward and one backward; a higher one is that of the formula in plain torch.

    y = ghost_batch_norm(x, weight, bias, group=16, gather=gather)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels import _group_norm_split as split_form
from fasttrain_kernels._group_norm_launches import chunk_statistics
from fasttrain_kernels._group_norm_plans import plan_split
from fasttrain_kernels._group_norm_reference import LEAK
from fasttrain_kernels.dispatch import launch
from fasttrain_kernels.statistics import chunk_pixels

__all__ = ["Gather", "spanning", "spanning_reference"]

Gather: TypeAlias = Callable[[Tensor], Tensor]


def spanning_reference(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    *,
    group: int,
    gather: Gather,
    eps: float,
    activation: Literal["none", "leaky_relu"],
) -> Tensor:
    """Plain torch, differentiable to any order. Computes in float32 (float64 for float64)."""
    dtype = torch.promote_types(x.dtype, torch.float32)
    h = x.to(dtype).unflatten(0, (-1, group))  # [N / g, g, C, H, W]
    own_mean = h.mean((1, 3, 4), keepdim=True)
    centred = h - own_mean
    own_var = centred.square().mean((1, 3, 4), keepdim=True)
    mean, var = _combined(gather(torch.stack([own_mean, own_var])))
    k = (var + eps).rsqrt() * weight.to(dtype).view(-1, 1, 1)
    y = centred * k + ((own_mean - mean) * k + bias.to(dtype).view(-1, 1, 1))
    if activation == "leaky_relu":
        y = F.leaky_relu(y, LEAK)
    return y.flatten(0, 1).to(x.dtype)


def _combined(parts: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance of all, from those of equally large parts, [P, 2, ...]."""
    means, variances = parts.unbind(1)
    mean = means.mean(0)
    return mean, (variances + (means - mean).square()).mean(0)


def _own(tall: Tensor) -> Tensor:
    """Mean and variance of each channel of x [N, C, H, W], [2, N, C] float32."""
    partial = chunk_statistics(tall).double()  # [N, chunks, C, 2]
    pixels, size = tall[0, 0].numel(), chunk_pixels(tall[0, 0].numel())
    counts = torch.full((partial.shape[1], 1), float(size), device=tall.device, dtype=torch.double)
    counts[-1] -= len(counts) * size - pixels
    means, m2 = partial.unbind(3)
    mean = (counts * means).sum(1) / pixels
    square = (m2 + counts * (means - mean[:, None]).square()).sum(1)
    return torch.stack([mean, square / pixels]).float()


class _Spanning(torch.autograd.Function):
    """Of `tall` [N / g, C, g H, W] in channels_last, in which a group is one image."""

    @staticmethod
    def forward(
        ctx: Any,
        tall: Tensor,
        weight: Tensor,
        bias: Tensor,
        gather: Gather,
        eps: float,
        activation: str,
    ) -> Tensor:
        mean, var = _combined(gather(_own(tall)))
        rstd = (var + eps).rsqrt()
        y = torch.empty_like(tall)
        grid, how = _how(tall, activation)
        launch(
            split_form.apply_kernel, grid, x=tall, weight=weight, bias=bias, y=y,
            means=mean, rstds=rstd, **how,
        )  # fmt: skip
        ctx.save_for_backward(tall, weight, bias, mean, rstd)
        ctx.gather, ctx.eps, ctx.activation = gather, eps, activation
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Grad mode is on in here exactly under create_graph: then as in `group_norm`."""
        *inputs, mean, rstd = ctx.saved_tensors
        if torch.is_grad_enabled():
            grads = _differentiable_gradients(ctx, dy, inputs)
        else:
            dy = dy.contiguous(memory_format=torch.channels_last)
            grads = _kernel_gradients(ctx, dy, inputs, mean, rstd)
        return (*grads, None, None, None)


def _how(tall: Tensor, activation: str) -> tuple[tuple[int, int], dict[str, Any]]:
    """Grid and arguments of a kernel of the split form, in which each channel is a group."""
    (samples, channels), pixels = tall.shape[:2], tall[0, 0].numel()
    plan = plan_split(channels, pixels, True)
    absent = ("shift_in", "scale", "shift")
    return plan.grid(samples, channels, pixels), {
        **dict.fromkeys(absent), **dict.fromkeys([f"{name}_stride" for name in absent], 0),
        "GROUPS": channels, "CG": 1, "HW": pixels, "LAST": True, "ACTIVATION": activation,
        **plan.sizes,
    }  # fmt: skip


def _kernel_gradients(
    ctx: Any, dy: Tensor, inputs: list[Tensor], mean: Tensor, rstd: Tensor
) -> list[Tensor | None]:
    tall, weight, bias = inputs
    (samples, channels), pixels = tall.shape[:2], tall[0, 0].numel()
    grid, how = _how(tall, ctx.activation)
    named: dict[str, Any] = {
        "dy": dy,
        "x": tall,
        "weight": weight,
        "bias": bias,
        "means": mean,
        "rstds": rstd,
    }
    blocks = grid[0] // samples
    partial = torch.empty(samples, blocks, 3, channels, device=tall.device, dtype=torch.float)
    launch(split_form.sums_kernel, grid, **named, partial=partial, **how)
    a, b, _ = partial.sum(1).unbind(1)
    dx = None
    if ctx.needs_input_grad[0]:
        everywhere = ctx.gather(torch.stack([a, b]))
        slopes, offsets = everywhere.sum(0) * weight.float() / (len(everywhere) * pixels)
        dx = torch.empty_like(tall)
        launch(
            split_form.apply_backward_kernel, grid, **named, slopes=slopes, offsets=offsets,
            dfork=None, dx=dx, **how,
        )  # fmt: skip
    return [dx, a.sum(0).to(weight.dtype), b.sum(0).to(bias.dtype)]


def _differentiable_gradients(ctx: Any, dy: Tensor, inputs: list[Any]) -> list[Tensor | None]:
    # Views: the derivative by one input must not run on through another that was made of it.
    views = [t.view_as(t) for t in inputs]
    y = spanning_reference(
        *views, group=1, gather=ctx.gather, eps=ctx.eps, activation=ctx.activation
    )
    needs = ctx.needs_input_grad[:3]
    wanted = [v for v, need in zip(views, needs, strict=True) if need]
    grads = iter(torch.autograd.grad(y, wanted, dy, create_graph=True))
    return [next(grads) if need else None for need in needs]


def spanning(
    tall: Tensor, weight: Tensor, bias: Tensor, *, gather: Gather, eps: float, activation: str
) -> Tensor:
    """The kernels, of x [N / g, C, g H, W] in channels_last: see `ghost_batch_norm`."""
    y: Tensor = _Spanning.apply(tall, weight, bias, gather, eps, activation)
    return y
