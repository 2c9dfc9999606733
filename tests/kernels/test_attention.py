"""attention against its definition in float64: outputs, gradients, second order, layouts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain_kernels import blocked_rows
from tests.kernels.attention_definition import (
    LAYOUTS,
    OPS,
    assert_same_as_definition,
    definition,
    make,
    op,
    triton_op,
)
from tests.kernels.support import DEVICE, TOLERANCE, relative_error

SHAPES = [  # samples, heads, head size, height, width: one token, odd sizes, whole blocks, padding
    (1, 1, 32, 1, 1),
    (2, 3, 16, 5, 7),
    (1, 2, 64, 4, 4),
    (2, 1, 40, 3, 6),
    (1, 1, 128, 2, 9),
]
PLANS = {
    "as launched": None,
    "keys in blocks": op.Plan(32, 16, 1, 1),
    "queries in blocks": op.Plan(16, 32, 1, 1),
}


@pytest.mark.parametrize("function", OPS.values(), ids=OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_dtypes_and_layouts(function, layout, dtype, shape) -> None:
    assert_same_as_definition(function, make(shape, dtype, layout), shape[1], factor=2)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_blocks(plan, layout, dtype, monkeypatch) -> None:
    """Several blocks of queries and of keys, the last of each cut short."""
    if plan is not None:
        monkeypatch.setattr(op, "plan_forward", lambda *sizes: plan)
        monkeypatch.setattr(op, "plan_backward", lambda *sizes: plan)
    shape = (1, 2, 16, 7, 11)
    assert_same_as_definition(triton_op, make(shape, dtype, layout), shape[1], factor=2)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_products_of_16_bit_blocks(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As compiled: P and dS are rounded to 16 bits before their products."""
    monkeypatch.setattr(op, "INTERPRETED", False)
    for layout in LAYOUTS:
        assert_same_as_definition(triton_op, make((1, 2, 16, 5, 7), dtype, layout), 2, factor=2)


@pytest.mark.parametrize("tokens", [300, 257])
def test_more_tokens_than_one_tile(tokens: int) -> None:
    shape = (1, 1, 16, 1, tokens)
    assert_same_as_definition(triton_op, make(shape, torch.bfloat16, "channels_last"), 1, factor=2)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scores_of_thousands_saturate_without_overflow(layout: str) -> None:
    qkv = make((1, 1, 16, 4, 5), torch.float32, layout, spread=60.0)
    scores = torch.einsum("ndq,ndk->nqk", *qkv.detach().flatten(2).split(16, 1)[:2]) / 4
    assert float(scores.abs().max()) > 5000
    expected = definition(qkv.detach().double(), 1)
    y = triton_op(qkv, 1)
    assert relative_error(y, expected) < 1e-3
    (grad,) = torch.autograd.grad(y.sum(), qkv)
    assert grad.isfinite().all()


def test_a_token_that_is_not_finite_spoils_its_own_head_only() -> None:
    qkv = make((2, 2, 16, 3, 3), torch.float32, "contiguous").detach()
    clean = triton_op(qkv, 2)
    qkv[0, 5, 1, 1] = float("nan")  # in q of the first sample's first head
    y = triton_op(qkv, 2)
    assert y[0, :16, 1, 1].isnan().all()
    kept = torch.ones(2, 32, 3, 3, dtype=torch.bool)
    kept[0, :16, 1, 1] = False
    assert torch.equal(y[kept], clean[kept])


@pytest.mark.parametrize("function", OPS.values(), ids=OPS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_memory_format_stays(function: Any, layout: str) -> None:
    qkv = make((2, 2, 16, 3, 5), torch.float32, layout)
    y = function(qkv, 2)
    assert y.is_contiguous(memory_format=LAYOUTS[layout])
    (grad,) = torch.autograd.grad(y.sum(), qkv)
    assert grad.is_contiguous(memory_format=LAYOUTS[layout])


def test_gradients_of_another_layout() -> None:
    qkv = make((2, 2, 16, 3, 5), torch.float32, "channels_last")
    dy = torch.randn(2, 32, 5, 3, device=DEVICE).mT
    (grad,) = torch.autograd.grad(triton_op(qkv, 2), qkv, dy)
    (expected,) = torch.autograd.grad(definition(qkv.double(), 2), qkv, dy.double())
    assert relative_error(grad, expected) < 1e-5


def test_inputs_are_not_overwritten_and_results_repeat() -> None:
    qkv = make((1, 2, 16, 5, 5), torch.float32, "channels_last")
    before = qkv.detach().clone()
    y = triton_op(qkv, 2)
    dy = torch.randn_like(y)
    first, second = (torch.autograd.grad(y, qkv, dy, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(qkv, before)
    assert torch.equal(first, second)
    assert torch.equal(y, triton_op(qkv, 2))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_second_order(layout: str) -> None:
    """A gradient penalty: what create_graph builds must not hold the kernel's result as a
    constant. In float32 against the definition, and gradgradcheck of the formula in float64."""
    qkv = make((1, 2, 16, 2, 3), torch.float32, layout)

    def penalty(function: Any, x: Tensor) -> Tensor:
        (grad,) = torch.autograd.grad((function(x, 2) ** 2).sum(), x, create_graph=True)
        return torch.autograd.grad((grad**2).sum(), x)[0]

    exact = qkv.detach().double().requires_grad_()
    expected = penalty(definition, exact)
    assert relative_error(penalty(triton_op, qkv), expected) < 1e-5
    small = torch.randn(1, 12, 2, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradgradcheck(lambda x: op._plain(x, 2), small, fast_mode=True)


@pytest.mark.parametrize("function", OPS.values(), ids=OPS)
def test_an_empty_batch(function: Any) -> None:
    qkv = torch.zeros(0, 48, 3, 3, device=DEVICE, requires_grad=True)
    y = function(qkv, 1)
    assert y.shape == (0, 16, 3, 3)
    y.sum().backward()
    assert qkv.grad is not None


@pytest.mark.parametrize("heads", [1, 3])
def test_blocked_rows(heads: int) -> None:
    """Row (head * D + d) * 3 + j becomes row j * C + head * D + d, in weights and biases."""
    size = 5
    weight = torch.randn(3 * heads * size, 7, 1, 1, requires_grad=True)
    rows = [
        (head * size + d) * 3 + j for j in range(3) for head in range(heads) for d in range(size)
    ]
    assert torch.equal(blocked_rows(weight, heads), weight[rows])
    assert torch.equal(blocked_rows(weight[:, 0, 0, 0], heads), weight[rows, 0, 0, 0])
    seed = torch.randn_like(weight)
    (grad,) = torch.autograd.grad(blocked_rows(weight, heads), weight, seed)
    assert torch.equal(grad[rows], seed)
