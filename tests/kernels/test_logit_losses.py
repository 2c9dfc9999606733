"""logit_losses against the losses' definitions in float64: values, gradients of two orders, parts
of many sizes. The kernels run in Triton's interpreter on the CPU."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain_kernels import logit_losses
from tests.kernels.support import DEVICE, TOLERANCE, assert_matches, compiled_ops, guarded

op_file: Any = import_module("fasttrain_kernels.logit_losses")

KINDS = ("softplus", "hinge")
IMPLS = ("triton", "reference")
SHAPES = [(3, 700), (2, 5), (1,), (1024,), (2, 3, 171)]
SIGNS = (1, -1, -1, 1, -1)


def definition(*logits: Tensor, signs: Any = SIGNS, kind: str = "softplus") -> Tensor:
    rows = []
    for x, sign in zip(logits, signs, strict=True):
        z = sign * x  # at the kink, which bfloat16 logits meet, the slope is 0 as of torch.relu
        loss = torch.log1p(z.exp()) if kind == "softplus" else torch.relu(1 + z)
        rows.append(torch.stack([loss.sum() / x.numel(), x.sum() / x.numel()]))
    return torch.stack(rows)


def make_logits(shapes: Any = SHAPES, dtype: torch.dtype = torch.float32) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [
        guarded(2 * torch.randn(shape, generator=generator), dtype).requires_grad_()
        for shape in shapes
    ]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_equals_the_definition(impl: Any, kind: Any, dtype: torch.dtype) -> None:
    assert_matches(
        lambda *x: logit_losses(x, SIGNS, kind, impl=impl),
        lambda *x: definition(*x, kind=kind),
        *make_logits(dtype=dtype),
    )


@pytest.mark.parametrize("impl", IMPLS)
def test_large_logits_neither_overflow_nor_vanish(impl: Any) -> None:
    x = torch.tensor([-300.0, -30.0, 30.0, 300.0], device=DEVICE, requires_grad=True)
    out = logit_losses([x], [1], impl=impl)
    assert out[0, 0].item() == pytest.approx(330 / 4)
    (grad,) = torch.autograd.grad(out[0, 0], x)
    expected = torch.tensor([0.0, 0.0, 0.25, 0.25], device=DEVICE)
    torch.testing.assert_close(grad, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("kind", KINDS)
def test_second_order(kind: Any) -> None:
    """Of the reference, and through the kernel under create_graph."""
    small = [x.detach().double().requires_grad_() for x in make_logits([(2, 3), (4,)])]

    def op(*x: Tensor) -> Tensor:
        return logit_losses(x, (1, -1), kind)

    assert torch.autograd.gradcheck(op, tuple(small))
    assert torch.autograd.gradgradcheck(op, tuple(small))
    for impl in IMPLS:
        x = make_logits([(2, 3)])
        loss = logit_losses(x, [1], kind, impl=impl)[0, 0]  # type: ignore[arg-type]
        (first,) = torch.autograd.grad(loss.square(), x, create_graph=True)
        (got,) = torch.autograd.grad(first.pow(3).sum(), x)
        exact = [t.detach().double().requires_grad_() for t in x]
        loss = definition(*exact, signs=[1], kind=kind)[0, 0]
        (first,) = torch.autograd.grad(loss.square(), exact, create_graph=True)
        (wanted,) = torch.autograd.grad(first.pow(3).sum(), exact)
        torch.testing.assert_close(got.double(), wanted, rtol=1e-4, atol=1e-7)


def test_compiled_graphs_hold_the_op_whole() -> None:
    forward, backward = compiled_ops(
        lambda *x: logit_losses(x, (1, -1), impl="triton"), *make_logits([(2, 3), (4,)])
    )
    assert forward == {"fasttrain.logit_losses.default"}
    assert backward == {"fasttrain.logit_losses_backward.default"}


def test_registration_is_sound() -> None:
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    (x,) = make_logits([(9,)])
    torch.library.opcheck(op_file._losses.custom, (x, [4, 5], [1, -1], False), test_utils=tests)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], []), "one or more tensors"),
        (([torch.zeros(2, 0)], [1]), "none of them empty"),
        (([torch.zeros(2), torch.zeros(2).double()], [1, 1]), "one floating dtype"),
        (([torch.zeros(2)], [1, 1]), "for each of 1 parts"),
        (([torch.zeros(2)], [2]), "signs must be 1 or -1"),
        (([torch.zeros(2)], [1], "wasserstein"), "not 'wasserstein'"),
    ],
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        logit_losses(*arguments)
