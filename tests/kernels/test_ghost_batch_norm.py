"""ghost_batch_norm against batch norm of each group in float64: outputs, gradients of two orders,
whole and split forms. The kernels run in Triton's interpreter on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels import _group_norm_launches as launches
from fasttrain_kernels import ghost_batch_norm
from fasttrain_kernels._tiles import Plan
from fasttrain_kernels.dispatch import in_channels_last
from tests.kernels.support import TOLERANCE, assert_matches, compiled_ops, guarded

# shape, images a group: odd and aligned, one group and several, one image, one pixel
CASES = [
    ((4, 6, 3, 5), 2),
    ((3, 8, 4, 4), 3),
    ((6, 33, 2, 3), 2),
    ((2, 3, 17, 17), 1),
    ((4, 5, 1, 1), 4),
]
ACTIVATIONS = ("none", "leaky_relu")
IMPLS = ("triton", "reference")


def definition(x: Tensor, weight: Tensor, bias: Tensor, group: int, activation: str) -> Tensor:
    parts = []
    for part in x.split(group):
        mean = part.mean((0, 2, 3), keepdim=True)
        variance = (part - mean).square().mean((0, 2, 3), keepdim=True)
        xhat = (part - mean) / (variance + 1e-5).sqrt()
        parts.append(xhat * weight.view(-1, 1, 1) + bias.view(-1, 1, 1))
    y = torch.cat(parts)
    return F.leaky_relu(y, 0.2) if activation == "leaky_relu" else y


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, offset: float = 0.5
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=generator) + offset
    x = x.contiguous(memory_format=torch.channels_last)
    rows = [torch.randn(shape[1], generator=generator) for _ in range(2)]
    return [
        guarded(x, dtype).requires_grad_(),
        *(guarded(row, torch.float32).requires_grad_() for row in rows),
    ]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(("shape", "group"), CASES)
def test_equals_the_definition(impl: Any, activation: Any, shape: Any, group: int) -> None:
    assert_matches(
        lambda *x: ghost_batch_norm(*x, group=group, activation=activation, impl=impl),
        lambda *x: definition(*x, group, activation),
        *make_inputs(shape),
    )


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_dtypes(impl: Any, dtype: torch.dtype) -> None:
    assert_matches(
        lambda *x: ghost_batch_norm(*x, group=2, activation="leaky_relu", impl=impl),
        lambda *x: definition(*x, 2, "leaky_relu"),
        *make_inputs((4, 6, 3, 4), dtype),
    )


@pytest.mark.parametrize("most", [1, 4])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_split_form(most: int, activation: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Several chunks of statistics and blocks of sums, combined a few at a time, or all by torch
    where they are more than a program combines."""
    monkeypatch.setattr(launches, "splits", lambda *a, **k: True)
    monkeypatch.setattr(launches, "most_blocks", lambda channels: most)
    monkeypatch.setattr(launches, "plan_split", lambda *a: Plan(4, 128, 1))
    assert_matches(
        lambda *x: ghost_batch_norm(*x, group=2, activation=activation, impl="triton"),
        lambda *x: definition(*x, 2, activation),
        *make_inputs((4, 6, 17, 17)),
    )


def test_a_mean_far_from_zero_cancels_nothing() -> None:
    x, weight, bias = (t.detach() for t in make_inputs((4, 3, 4, 4), offset=1000.0))
    expected = definition(x.double(), weight.double(), bias.double(), 2, "none")
    got = ghost_batch_norm(x, weight, bias, group=2, impl="triton")
    torch.testing.assert_close(got.double(), expected, rtol=1e-3, atol=1e-3)


def test_memory_formats() -> None:
    """What is contiguous is copied; the kernels' result is channels_last."""
    x, weight, bias = (t.detach() for t in make_inputs((4, 3, 4, 5)))
    expected = definition(x, weight, bias, 2, "leaky_relu")
    for given in (x, x.contiguous(), x.mT.contiguous().mT):
        y = ghost_batch_norm(given, weight, bias, group=2, activation="leaky_relu", impl="triton")
        assert in_channels_last(y)
        torch.testing.assert_close(y, expected)


@pytest.mark.parametrize("group", [2, 4])
def test_the_reference_keeps_bfloat16_in_channels_last_on_a_cpu(group: int) -> None:
    """The convolution that comes next is faster so; float32 keeps its bits and its copies."""
    inputs = [t.detach().cpu().requires_grad_() for t in make_inputs((4, 6, 3, 4), torch.bfloat16)]
    y = ghost_batch_norm(*inputs, group=group, activation="leaky_relu", impl="reference")
    assert in_channels_last(y)
    (grad,) = torch.autograd.grad(y.float().square().sum(), inputs[0])
    assert in_channels_last(grad)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_order_of_the_reference(activation: Any) -> None:
    x, weight, bias = (t.detach().double().requires_grad_() for t in make_inputs((4, 2, 2, 2)))

    def op(*inputs: Tensor) -> Tensor:
        return ghost_batch_norm(*inputs, group=2, activation=activation)

    assert torch.autograd.gradcheck(op, (x, weight, bias))
    assert torch.autograd.gradgradcheck(op, (x, weight, bias))


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("group", [2, 4])
def test_third_and_fourth_order(group: int, activation: Any, impl: Any) -> None:
    """torch's batch norm is 25 % off in the third, without an error."""
    if impl == "triton":
        inputs = [x.detach().requires_grad_() for x in make_inputs((4, 2, 2, 2))]
    else:
        inputs = [x.detach().double().requires_grad_() for x in make_inputs((4, 2, 2, 2))]
    exact = [x.detach().double().requires_grad_() for x in inputs]

    def derivatives(y: Tensor, leaves: list[Tensor]) -> list[tuple[Tensor, ...]]:
        found = [torch.autograd.grad(y.pow(3).mean(), leaves, create_graph=True)]
        for _ in range(3):
            total = sum((g.square().sum() for g in found[-1]), y.square().mean())
            found.append(torch.autograd.grad(total, leaves, create_graph=True))
        return found

    options: dict[str, Any] = {"group": group, "activation": activation}
    got = derivatives(ghost_batch_norm(*inputs, **options, impl=impl), inputs)
    expected = derivatives(definition(*exact, group, activation), exact)
    for order, (some, wanted) in enumerate(zip(got, expected, strict=True)):
        for a, b in zip(some, wanted, strict=True):
            error = (a.double() - b).norm() / b.norm()
            assert error < (1e-3 if impl == "triton" else 1e-9), (order + 1, float(error))


def test_no_bit_of_two_orders_differs_from_torchs() -> None:
    results = []
    for norm in (
        lambda x, weight, bias: F.batch_norm(x, None, None, weight, bias, True, 0.1, 1e-5),
        lambda *x: ghost_batch_norm(*x, group=4, impl="reference"),
    ):
        leaves = [x.detach().requires_grad_() for x in make_inputs((4, 6, 3, 4))]
        y = norm(*leaves)
        first = torch.autograd.grad(y.pow(3).sum(), leaves[0], create_graph=True)[0]
        total = y.square().sum() + first.square().sum()
        results.append([y, first, *torch.autograd.grad(total, leaves)])
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_second_order_through_the_kernels_is_that_of_the_formula(activation: Any) -> None:
    """As R1 takes it: the kernel's own gradient would be a constant to it, silently."""
    inputs = make_inputs((4, 3, 3, 4))
    exact = [x.detach().double().requires_grad_() for x in inputs]

    def second(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
        (first,) = torch.autograd.grad(y.pow(4).sum(), leaves[0], create_graph=True)
        return torch.autograd.grad(first.square().sum(), leaves)

    options: dict[str, Any] = {"group": 2, "activation": activation}
    got = second(ghost_batch_norm(*inputs, **options, impl="triton"), inputs)
    wanted = second(definition(*exact, 2, activation), exact)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


def test_compiled_graphs_hold_the_op_whole() -> None:
    forward, backward = compiled_ops(
        lambda *x: ghost_batch_norm(*x, group=2, activation="leaky_relu", impl="triton"),
        *make_inputs((4, 3, 2, 4)),
    )
    assert forward == {"fasttrain.group_norm.default"}
    assert backward == {"fasttrain.group_norm_backward.default"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": torch.zeros(4, 3, 2)}, r"\[N, C, H, W\]"),
        ({"weight": torch.zeros(2)}, r"weight must be \[3\]"),
        ({"group": 3}, "got 4 images, group 3"),
        ({"activation": "relu"}, "not 'relu'"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    arguments = {
        "x": torch.zeros(4, 3, 2, 2), "weight": torch.ones(3), "bias": torch.zeros(3), "group": 2,
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        ghost_batch_norm(**{**arguments, **changes})
