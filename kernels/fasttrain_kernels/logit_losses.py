r"""The GAN losses of many tensors of logits, and the logits' means, in one kernel.

For the logits x_k of a part k (a backbone's, of real images or of fakes), n_k of them, and its sign
s_k = 1 where high logits are punished (fakes of a discriminator step), -1 where low ones are::

    softplus:  loss_k = mean softplus(s x)      hinge:  loss_k = mean max(0, 1 + s x)
    d loss_k / dx = s sigmoid(s x) / n_k           d loss_k / dx = s [s x > -1] / n_k
    mean_k = mean x

In eager torch that is three or four small kernels a part each way, and the same again for means.
A program sums one part in a fixed order; so results repeat bit for bit.

    losses, means = logit_losses([real, fake], signs=(-1, 1)).unbind(1)
"""

# A kernel's arguments have no Python types, so mypy lets its functions be.
# mypy: allow-untyped-defs

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import accumulate
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels._registration import op
from fasttrain_kernels._tiles import sigmoid
from fasttrain_kernels.dispatch import Impl, launch, resolve, tl, triton

__all__ = ["logit_losses", "logit_losses_reference"]

Kind = Literal["softplus", "hinge"]


def logit_losses_reference(
    logits: Sequence[Tensor], signs: Sequence[int], kind: Kind = "softplus"
) -> Tensor:
    """Plain torch, any device and floating dtype, differentiable to any order."""
    rows = []
    for x, sign in zip(logits, signs, strict=True):
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        loss = F.softplus(sign * x) if kind == "softplus" else F.relu(1 + sign * x)
        rows.append(torch.stack([loss.mean(), x.mean()]))
    return torch.stack(rows)


# ---------------------------------------------------------------------------------------- kernels
# The parts lie one after the other; part k ends where `ends` says. Forward one program a part;
# backward program (k, j) has block j of part k.


@triton.jit
def _bounds(ends):
    part = tl.program_id(0)
    begin = tl.load(ends + part - 1, mask=part > 0, other=0)
    return part, begin, tl.load(ends + part)


@triton.jit
def _forward_kernel(logits, ends, signs, out, HINGE: tl.constexpr, BLOCK: tl.constexpr):
    part, begin, end = _bounds(ends)
    sign = tl.load(signs + part)
    losses = tl.zeros([BLOCK], tl.float32)
    sums = tl.zeros([BLOCK], tl.float32)
    for at in range(begin, end, BLOCK):
        element = at + tl.arange(0, BLOCK)
        live = element < end
        x = tl.load(logits + element, mask=live, other=0.0).to(tl.float32)
        z = sign * x
        if HINGE:
            loss = tl.maximum(1.0 + z, 0.0, propagate_nan=tl.PropagateNan.ALL)
        else:  # log(1 + e^z) without overflow
            positive = tl.maximum(z, 0.0, propagate_nan=tl.PropagateNan.ALL)
            loss = positive + tl.log(1.0 + tl.exp(-tl.abs(z)))
        losses += tl.where(live, loss, 0.0)
        sums += x
    count = (end - begin).to(tl.float32)
    tl.store(out + 2 * part, tl.sum(losses) / count)
    tl.store(out + 2 * part + 1, tl.sum(sums) / count)


@triton.jit
def _backward_kernel(
    logits, ends, signs, dout, dlogits, HINGE: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    part, begin, end = _bounds(ends)
    sign = tl.load(signs + part)
    element = begin + tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    live = element < end
    x = tl.load(logits + element, mask=live, other=0.0).to(tl.float32)
    z = sign * x
    slope = tl.where(z <= -1.0, 0.0, sign) if HINGE else sign * sigmoid(z)  # of NaN, as in torch
    dloss, dmean = tl.load(dout + 2 * part), tl.load(dout + 2 * part + 1)
    dx = (dloss * slope + dmean) / (end - begin).to(tl.float32)
    tl.store(dlogits + element, dx.to(dlogits.dtype.element_ty), mask=live)


# --------------------------------------------------------------------------------------- launcher

BLOCK = 1024


@lru_cache(maxsize=64)
def _tables(
    sizes: tuple[int, ...], signs: tuple[int, ...], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Where parts end, int64, and their signs, float32, on the device: copied there once."""
    ends = torch.tensor(list(accumulate(sizes)), device=device)
    return ends, torch.tensor(signs, dtype=torch.float32, device=device)


# ----------------------------------------------------------------------------------- registration


def _allocate(logits: Tensor, sizes: Sequence[int], signs: Sequence[int], hinge: bool) -> Tensor:
    return torch.empty(len(sizes), 2, device=logits.device, dtype=torch.float32)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(inputs[0])
    ctx.options = inputs[1:]


def _gradients(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    """The autograd formula. Grad mode is on in here exactly under create_graph: the kernel's result
    would be a constant to the next derivative, so plain torch takes over."""
    (logits,) = ctx.saved_tensors
    sizes, signs, hinge = ctx.options
    if torch.is_grad_enabled():
        view = logits.view_as(logits)
        out = logit_losses_reference(
            view.split(list(sizes)), signs, "hinge" if hinge else "softplus"
        )
        return torch.autograd.grad(out, view, dout, create_graph=True)[0], None, None, None
    return _backward(dout.contiguous(), logits, sizes, signs, hinge), None, None, None


@op("logit_losses", fake=_allocate, gradients=_gradients, context=_setup_context)
def _losses(logits: Tensor, sizes: Sequence[int], signs: Sequence[int], hinge: bool) -> Tensor:
    """logits: all parts, flat, one after the other."""
    out = _allocate(logits, sizes, signs, hinge)
    ends, sign = _tables(tuple(sizes), tuple(signs), logits.device)
    launch(
        _forward_kernel, (len(sizes),), logits=logits, ends=ends, signs=sign, out=out,
        HINGE=hinge, BLOCK=BLOCK, num_warps=8,
    )  # fmt: skip
    return out


@op("logit_losses_backward", fake=lambda dout, logits, *_: torch.empty_like(logits))
def _backward(
    dout: Tensor, logits: Tensor, sizes: Sequence[int], signs: Sequence[int], hinge: bool
) -> Tensor:
    dlogits = torch.empty_like(logits)
    ends, sign = _tables(tuple(sizes), tuple(signs), logits.device)
    launch(
        _backward_kernel, (len(sizes), -(-max(sizes) // BLOCK)), logits=logits, ends=ends,
        signs=sign, dout=dout, dlogits=dlogits, HINGE=hinge, BLOCK=BLOCK, num_warps=4,
    )  # fmt: skip
    return dlogits


# ------------------------------------------------------------------------------------- public op


def logit_losses(
    logits: Sequence[Tensor],
    signs: Sequence[int],
    kind: Kind = "softplus",
    *,
    impl: Impl = "auto",
) -> Tensor:
    """Mean loss and mean logit of each part.

    Args:
        logits: the parts, of any shapes with at least one element, of one dtype: float32, bfloat16
            or float16; the reference also takes float64.
        signs: of each part: 1 where high logits are punished, -1 where low ones are.
        kind: "softplus" for the non-saturating loss, "hinge".
        impl: see `fasttrain_kernels.dispatch.resolve`.

    Returns:
        [parts, 2]: mean loss and mean logit; float32 (float64 for float64), as the sums are.

    Gradients: for the logits, of both columns; first order by the kernel, higher orders by plain
    torch.

    Raises:
        ValueError: no part, an empty one, other dtypes, signs that are not as many or not 1 or -1,
            an unknown kind.
    """
    if not logits or any(x.numel() == 0 for x in logits):
        raise ValueError("logits must be one or more tensors, none of them empty")
    if len({x.dtype for x in logits}) > 1 or not logits[0].is_floating_point():
        raise ValueError(f"logits must be of one floating dtype, got {[x.dtype for x in logits]}")
    if len(signs) != len(logits) or set(signs) - {1, -1}:
        raise ValueError(f"signs must be 1 or -1 for each of {len(logits)} parts, got {signs}")
    if kind not in ("softplus", "hinge"):
        raise ValueError(f"kind is 'softplus' or 'hinge', not {kind!r}")
    if resolve(impl, logits[0]) == "reference":
        return logit_losses_reference(logits, signs, kind)
    flat = torch.cat([x.reshape(-1) for x in logits])
    return _losses(flat, [x.numel() for x in logits], list(signs), kind == "hinge")
