"""Gradients of residual_scale: shared, accumulated, left out, of higher orders, compiled."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from fasttrain_kernels.dispatch import in_channels_last
from fasttrain_kernels.residual_scale import residual_scale
from tests.kernels.residual_scale_definition import LAYOUTS, OPS, definition, make_inputs, triton_op
from tests.kernels.support import DEVICE, recorder, relative_error


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_one_gradient_serves_both(scale: float) -> None:
    """The activations share one tensor, which is dy itself where scale is 1."""
    inputs = make_inputs((2, 6, 3, 5), torch.float32)
    dy = torch.randn(2, 6, 3, 5, device=DEVICE)
    y = triton_op(**inputs, scale=scale)
    branch, residual = torch.autograd.grad(y, [inputs["branch"], inputs["residual"]], dy)
    assert branch.data_ptr() == residual.data_ptr()
    assert (branch.data_ptr() == dy.data_ptr()) == (scale == 1)


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_accumulated_gradients_do_not_touch_each_other(scale: float) -> None:
    """Sums into one .grad leave the other, and dy, alone: also where both inputs are one tensor,
    and where the gradient goes on to a second use of the input."""
    inputs = make_inputs((2, 6, 3, 5), torch.float32)
    branch, residual = inputs["branch"], inputs["residual"]
    dy = torch.randn(2, 6, 3, 5, device=DEVICE)
    before, expected = dy.clone(), dy * scale
    y = triton_op(**inputs, scale=scale)
    y.backward(dy, retain_graph=True)
    branch.grad.add_(100.0)
    assert torch.equal(residual.grad, expected)
    y.backward(dy)
    torch.testing.assert_close(branch.grad, 100 + 2 * expected)
    assert torch.equal(residual.grad, 2 * expected)
    assert torch.equal(dy, before)

    x = residual.detach().clone().requires_grad_()
    (triton_op(x, x, scale=scale) + 3 * x).backward(dy)
    torch.testing.assert_close(x.grad, 2 * expected + 3 * dy)
    assert torch.equal(dy, before)


@pytest.mark.parametrize("wanted", ["branch", "residual", "bias"])
def test_only_needed_gradients(wanted: str) -> None:
    inputs = make_inputs((2, 6, 3, 5), torch.float32)
    everything = torch.autograd.grad(triton_op(**inputs, scale=0.7).sum(), list(inputs.values()))
    for name, value in inputs.items():
        value.requires_grad_(name == wanted)
    triton_op(**inputs, scale=0.7).sum().backward()
    for (name, value), expected in zip(inputs.items(), everything, strict=True):
        if name == wanted:
            assert torch.equal(value.grad, expected)
        else:
            assert value.grad is None


def test_the_bias_gradient_is_summed_in_float32() -> None:
    """20,000 values of about 1, rounded once at most: a sum in bfloat16 would stop at 256."""
    inputs = make_inputs((5, 1, 64, 64), torch.bfloat16)
    dy = (torch.rand(5, 1, 64, 64, device=DEVICE) + 0.5).bfloat16()
    (grad,) = torch.autograd.grad(triton_op(**inputs, scale=0.7), inputs["bias"], dy)
    assert relative_error(grad, 0.7 * dy.double().sum((0, 2, 3))) < 1e-6


def test_statistics_take_no_gradient() -> None:
    inputs = make_inputs((2, 6, 3, 5), torch.float32)
    for op in OPS.values():
        y, statistics = op(**inputs, statistics=True)
        assert y.requires_grad
        assert not statistics.requires_grad
        loss = (y * statistics.sum()).sum()
        (grad,) = torch.autograd.grad(loss, inputs["branch"])
        torch.testing.assert_close(grad, torch.full_like(grad, statistics.sum().item()))


@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_second_order_of_the_reference(with_bias: bool, scale: float) -> None:
    inputs = make_inputs((2, 3, 2, 2), torch.float64, bias=torch.float64 if with_bias else None)

    def op(*tensors: Tensor) -> Tensor:
        return residual_scale(*tensors, scale=scale)

    assert torch.autograd.gradcheck(op, tuple(inputs.values()))
    assert torch.autograd.gradgradcheck(op, tuple(inputs.values()))


@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_a_gradient_penalty_through_the_kernel(scale: float) -> None:
    """Under create_graph, and to the third order: a cubic of y makes every derivative depend on the
    inputs."""
    inputs = make_inputs((2, 3, 2, 3), torch.float32)

    def derivatives(op: Callable[..., Tensor], t: dict[str, Tensor]) -> list[Tensor]:
        values = list(t.values())
        first = torch.autograd.grad((op(**t, scale=scale) ** 4).sum(), values, create_graph=True)
        penalty = sum(g.square().mean() for g in first)
        second = torch.autograd.grad(penalty, values, create_graph=True)
        third = torch.autograd.grad(sum(g.square().mean() for g in second), values)
        return [*first, *second, *third]

    exact = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    expected = derivatives(definition, exact)
    for got, e in zip(derivatives(triton_op, inputs), expected, strict=True):
        assert relative_error(got, e) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("scale", [1.0, 0.7])
def test_compiled_graphs_hold_the_op_whole(layout, scale: float) -> None:
    graphs: list[list[str]] = []
    inputs = make_inputs((2, 6, 3, 5), torch.float32, layout)
    values = list(inputs.values())
    y, statistics = triton_op(**inputs, scale=scale, statistics=True)
    expected = torch.autograd.grad(y.square().sum(), values)
    for backend in (recorder(graphs), "aot_eager"):
        torch._dynamo.reset()
        compiled = torch.compile(triton_op, fullgraph=True, backend=backend)
        got, got_statistics = compiled(**inputs, scale=scale, statistics=True)
        assert in_channels_last(got) == in_channels_last(y)
        torch.testing.assert_close((got, got_statistics), (y, statistics))
        for a, b in zip(torch.autograd.grad(got.square().sum(), values), expected, strict=True):
            torch.testing.assert_close(a, b)
    forward, backward = graphs
    assert forward == ["fasttrain.residual_scale.default"]
    assert sum("aten.mul" in name for name in backward) == (0 if scale == 1 else 2)
    assert sum("aten.sum" in name for name in backward) == 1
