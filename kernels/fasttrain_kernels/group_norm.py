r"""Group norm fused with what surrounds it in a diffusion U-Net: shift, modulation, SiLU.

For x [N, C, H, W] and M elements in a group (sums over one sample's group; r is the rstd)::

    h    = x + shift_in[n, c]
    xhat = (h - mean) r,      mean = sum(h) / M,     r = (sum((h - mean)^2) / M + eps)^(-1/2)
    z    = k xhat + b,        k = weight (1 + scale),     b = bias (1 + scale) + shift
    y    = z sigmoid(z)       or y = z without SiLU; `ghost_batch_norm` has y = leaky_relu(z)

Backward, with dz = dy s (1 + z (1 - s)), s = sigmoid(z), and per-(n, c) sums over the pixels::

    A = sum(dz xhat)             B = sum(dz)
    dx        = r (k dz - sum(k B) / M - xhat sum(k A) / M)      sums over the group's channels
    dshift_in = sum(dx) over the pixels
    dscale    = weight A + bias B                       dshift = B
    dweight   = sum over n of (1 + scale) A             dbias  = sum over n of (1 + scale) B

In eager torch that chain reads and writes the activation up to 14 times forward and 19 backward,
here 2 and 3 times, plus a second read from the cache where a group does not fit in registers.

Both memory formats are accepted without conversion, in one of two forms:
see `_group_norm_plans.py`.

The small gradients need no atomics, so they are deterministic: sums of each (sample, channel) are
written, and one more kernel makes all of them, the batch in a fixed order.

With `fork` x goes on beside y, and the backward pass adds the gradient that comes back for it to dx
as it is stored. A residual path that takes that x costs no sum of two gradients.

    y = group_norm(x, weight, bias, groups=32, scale=scale, shift=shift)
    y, x = group_norm(x, weight, bias, groups=32, fork=True)     # and later ... + x
"""

from __future__ import annotations

from typing import Any, Literal, overload

import torch
from torch import Tensor

from fasttrain_kernels import _group_norm_launches as launches
from fasttrain_kernels._group_norm_reference import (
    Activation,
    check_arguments,
    differentiable_gradients,
    group_norm_reference,
    small_gradients,
)
from fasttrain_kernels._registration import followed, op
from fasttrain_kernels._tiles import layout_of
from fasttrain_kernels.dispatch import Impl, in_channels_last, resolve

__all__ = ["group_norm", "group_norm_reference", "normalized"]

# ----------------------------------------------------------------------------------- registration


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, means, rstds = output
    ctx.save_for_backward(*inputs[:6], means, rstds)
    ctx.groups, ctx.eps, ctx.activation = inputs[6:9]
    ctx.mark_non_differentiable(means, rstds)
    ctx.set_materialize_grads(False)  # no zeros for them


def _gradients(
    ctx: Any, dy: Tensor | None, *_: Tensor | None, dfork: Tensor | None = None
) -> tuple[Tensor | None, ...]:
    """The autograd formula: a gradient for each input that needs one.

    Grad mode is on in here exactly under create_graph. A kernel's result would then be a constant
    to the next derivative, wrong without any exception, so the graph of the reference, rebuilt
    from the saved inputs alone, takes over.
    """
    *inputs, means, rstds = ctx.saved_tensors
    if dy is None:
        grads = [dfork, *[None] * 5]
    elif torch.is_grad_enabled():
        grads = differentiable_gradients(ctx, dy, inputs)
        if dfork is not None and grads[0] is not None:
            grads[0] = grads[0] + dfork
    else:
        grads = _kernel_gradients(ctx, dy, dfork, inputs, means, rstds)
    return (*grads, None, None, None, None)  # groups, eps, activation, statistics


def _kernel_gradients(
    ctx: Any,
    dy: Tensor,
    dfork: Tensor | None,
    inputs: list[Tensor | None],
    means: Tensor,
    rstds: Tensor,
) -> list[Tensor | None]:
    needs = ctx.needs_input_grad[:6]
    x = inputs[0]
    assert x is not None
    dy = dy.contiguous(memory_format=layout_of(x))
    if dfork is not None:
        dfork = dfork.contiguous(memory_format=layout_of(x))
    how = (ctx.activation, needs[0], any(needs[1:]))
    dx, sums = _backward(dy, *inputs, means, rstds, dfork, *how)
    small = small_gradients if followed(dy) or not sums.numel() else launches.small_gradients_kernel
    return [dx if needs[0] else None, *small(sums, inputs, needs)]


_forward = op("group_norm", fake=launches.allocate, gradients=_gradients, context=_setup_context)(
    launches.forward
)
_backward = op("group_norm_backward", fake=launches.allocate_gradients)(launches.backward)


class _Forked(torch.autograd.Function):
    """The op, and x itself; the gradient of the latter goes into the op's backward pass."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        output = _forward.run(*inputs)
        _setup_context(ctx, inputs, output)
        return output[0], inputs[0].view_as(inputs[0])

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        dy, dfork = grads
        return _gradients(ctx, dy, dfork=dfork)


# ------------------------------------------------------------------------------------- public op


@overload
def group_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, groups: int,
    eps: float = 1e-5, shift_in: Tensor | None = None, scale: Tensor | None = None,
    shift: Tensor | None = None, activation: Activation = "silu",
    statistics: Tensor | None = None, fork: Literal[False] = False, impl: Impl = "auto",
) -> Tensor: ...  # fmt: skip


@overload
def group_norm(
    x: Tensor, weight: Tensor | None = None, bias: Tensor | None = None, *, groups: int,
    eps: float = 1e-5, shift_in: Tensor | None = None, scale: Tensor | None = None,
    shift: Tensor | None = None, activation: Activation = "silu",
    statistics: Tensor | None = None, fork: Literal[True], impl: Impl = "auto",
) -> tuple[Tensor, Tensor]: ...  # fmt: skip


def group_norm(
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
    statistics: Tensor | None = None,
    fork: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """`silu((norm(x + shift_in) * weight + bias) * (1 + scale) + shift)`, every part but the norm
    optional.

    Args:
        x: [N, C, *], any trailing dimensions. float32, bfloat16 or float16; the reference also
            takes float64. The kernels read and write contiguous and channels_last memory as it
            is; any other is copied.
        weight, bias: [C] or None.
        groups: of C / groups consecutive channels; divides C.
        eps: added to the variance (biased) under the root.
        shift_in: [N, C] or None, added before the norm.
        scale, shift: [N, C] or None, applied after weight and bias. Rows may be strided: halves of
            one [N, 2 C] projection are read in place.
        activation: "silu" ends with `z * sigmoid(z)`, "leaky_relu" with slope 0.2; or "none".
        statistics: the partial statistics of x (without shift_in), if an op before has written
            them; see `fasttrain_kernels.statistics`. The kernels then need not read x for them;
            the reference does without. Not differentiated: gradients flow through x.
        fork: whether to return x, too, for what else reads it; see the module's docstring.
        impl: see `fasttrain_kernels.dispatch.resolve`.

    Returns:
        Shape, dtype and memory format of x. Statistics, sums and everything between load and store
        are float32, also with parameters of another dtype than x. With `fork` that and x.

    Gradients: for x, weight, bias, shift_in, scale and shift, only those that need one are
    computed; first order by the kernel, higher orders by the reference's formula.

    Raises:
        ValueError: shapes that do not fit, groups that do not divide C, an unknown activation, an
            `impl` that cannot run.
    """
    check_arguments(x, weight, bias, groups, shift_in, scale, shift, activation, statistics)
    if resolve(impl, x) == "reference":
        y = group_norm_reference(
            x, weight, bias, groups=groups, eps=eps,
            shift_in=shift_in, scale=scale, shift=shift, activation=activation,
        )  # fmt: skip
        return (y, x) if fork else y
    weight, bias = (None if t is None else t.contiguous() for t in (weight, bias))
    shift_in, scale, shift = (
        t if t is None or t.stride(1) == 1 else t.contiguous() for t in (shift_in, scale, shift)
    )
    x = x if in_channels_last(x) else x.contiguous()
    statistics = None if statistics is None else statistics.contiguous()
    inputs = (x, weight, bias, shift_in, scale, shift, groups, eps, activation, statistics)
    if fork and x.requires_grad and torch.is_grad_enabled() and not followed(x):
        y, x = _Forked.apply(*inputs)
        return y, x
    y = _forward(*inputs)[0]
    return (y, x) if fork else y


def normalized(
    x: Tensor, weight: Tensor, bias: Tensor, *, groups: int, eps: float, activation: Activation
) -> Tensor:
    """The kernels in any dtype and layout they take, for the ops that are a group norm of another
    view."""
    y: Tensor = _forward(x, weight, bias, None, None, None, groups, eps, activation, None)[0]
    return y
