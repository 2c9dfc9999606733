"""residual_scale against its definition in float64: outputs, statistics, gradients of two orders.

The kernel runs in Triton's interpreter on the CPU, or compiled where there is a GPU and
TRITON_INTERPRET=0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain_kernels.dispatch import in_channels_last
from fasttrain_kernels.residual_scale import Plan, residual_scale, residual_scale_reference
from fasttrain_kernels.statistics import chunk_pixels, partial_statistics
from tests.kernels.support import DEVICE, TOLERANCE, guarded, relative_error

op_file: Any = import_module("fasttrain_kernels.residual_scale")

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
SHAPES = [  # odd and aligned, tails of channels and of chunks, any trailing dimensions, one pixel
    (2, 6, 3, 5),
    (1, 8, 4, 4),
    (2, 70, 2, 3),
    (1, 3, 17, 17),
    (1, 2, 16, 32),
    (3, 5, 11),
    (2, 3, 2, 3, 2),
    (2, 12),
    (2, 4, 1, 1),
]


def definition(
    branch: Tensor, residual: Tensor, bias: Tensor | None = None, *, scale: float = 1.0
) -> Tensor:
    y = branch + residual
    if bias is not None:
        y = y + bias.reshape(-1, *[1] * (y.dim() - 2))
    return y * scale


def triton_op(*args: Any, **kwargs: Any) -> Any:
    return residual_scale(*args, **kwargs, impl="triton")


def reference_op(*args: Any, **kwargs: Any) -> Any:
    return residual_scale(*args, **kwargs, impl="reference")


OPS = {"triton": triton_op, "reference": reference_op}


def make_inputs(
    shape: tuple[int, ...],
    dtype: torch.dtype,
    layout: torch.memory_format = torch.contiguous_format,
    *,
    bias: torch.dtype | None = torch.float32,
    mean: float = 0.5,
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)

    def draw(size: tuple[int, ...], own: torch.dtype) -> Tensor:
        values = torch.randn(size, generator=generator) + mean
        if len(size) == 4:
            values = values.contiguous(memory_format=layout)
        return guarded(values, own).requires_grad_()

    inputs = {"branch": draw(shape, dtype), "residual": draw(shape, dtype)}
    if bias is not None:
        inputs["bias"] = draw(shape[1:2], bias)
    return inputs


def assert_statistics_of(y: Tensor, statistics: Tensor) -> None:
    """Those of y as stored, with no more error than a sum in float32 has."""
    exact = partial_statistics(y.double())
    assert statistics.dtype == torch.float32
    assert statistics.shape == exact.shape
    assert statistics.is_contiguous()
    assert not statistics.requires_grad
    assert relative_error(statistics[..., 0], exact[..., 0]) < 1e-6
    assert relative_error(statistics[..., 1], exact[..., 1]) < 1e-5


def assert_same_as_definition(
    op: Callable[..., Any], inputs: dict[str, Tensor], *, scale: float, statistics: bool
) -> None:
    exact = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    expected = definition(**exact, scale=scale)
    y = op(**inputs, scale=scale, statistics=statistics)
    if statistics:
        y, partial = y
        assert_statistics_of(y.detach(), partial)
    assert y.dtype == inputs["branch"].dtype
    assert y.shape == inputs["branch"].shape
    assert in_channels_last(y) == in_channels_last(inputs["branch"])
    assert relative_error(y, expected) < TOLERANCE[y.dtype]

    generator = torch.Generator().manual_seed(1)
    dy = guarded(torch.randn(y.shape, generator=generator), y.dtype)
    grads = torch.autograd.grad(y, list(inputs.values()), dy)
    expected_grads = torch.autograd.grad(expected, list(exact.values()), dy.double())
    for name, grad, expected_grad in zip(inputs, grads, expected_grads, strict=True):
        assert grad.dtype == inputs[name].dtype, name
        assert grad.shape == inputs[name].shape, name
        assert relative_error(grad, expected_grad) < TOLERANCE[grad.dtype], name


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize("shape", SHAPES)
def test_shapes_dtypes_and_layouts(op, layout, dtype, shape) -> None:
    inputs = make_inputs(shape, dtype, layout)
    assert_same_as_definition(op, inputs, scale=math.sqrt(0.5), statistics=True)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("scale", [1.0, 0.7])
@pytest.mark.parametrize("bias", [None, torch.float32, torch.bfloat16])
def test_every_set_of_options(op, layout, statistics, scale, bias) -> None:
    for dtype in (torch.float32, torch.bfloat16):
        inputs = make_inputs((2, 6, 3, 5), dtype, layout, bias=bias)
        assert_same_as_definition(op, inputs, scale=scale, statistics=statistics)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("statistics", [True, False])
@pytest.mark.parametrize("shape", [(2, 6, 3, 5), (1, 8, 4, 4), (2, 3, 17, 17)])
def test_tiles(shape, statistics, layout, monkeypatch) -> None:
    """Several tiles of channels, and of pixels where no statistics bind them to chunks."""
    block_p = chunk_pixels(math.prod(shape[2:])) if statistics else 8
    monkeypatch.setattr(op_file, "plan", lambda *sizes: Plan(4, block_p, 1))
    inputs = make_inputs(shape, torch.float32, layout)
    assert_same_as_definition(triton_op, inputs, scale=0.7, statistics=statistics)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_statistics_do_not_cancel_far_from_zero(op, layout) -> None:
    inputs = make_inputs((2, 3, 17, 17), torch.float32, layout, mean=1000.0)
    y, statistics = op(**inputs, scale=0.5, statistics=True)
    assert y.detach().std() < 2 < 1000 < y.detach().mean()
    assert_statistics_of(y.detach(), statistics)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("branch_last", [True, False])
def test_the_result_lies_as_the_branch_does(op, branch_last: bool) -> None:
    """A residual of the other format, and inputs that are neither."""
    shape = (2, 6, 3, 5)
    formats = list(LAYOUTS.values())
    inputs = make_inputs(shape, torch.float32, formats[branch_last])
    inputs["residual"] = make_inputs(shape, torch.float32, formats[not branch_last])["residual"]
    assert_same_as_definition(op, inputs, scale=0.7, statistics=True)
    turned = {n: t.detach().mT.contiguous().mT if n != "bias" else t for n, t in inputs.items()}
    y = op(**turned, scale=0.7)
    torch.testing.assert_close(y, definition(**turned, scale=0.7))


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


def test_inputs_are_not_overwritten_and_results_repeat() -> None:
    inputs = make_inputs((2, 6, 17, 17), torch.float32)
    before = {name: value.detach().clone() for name, value in inputs.items()}
    first = triton_op(**inputs, scale=0.7, statistics=True)
    second = triton_op(**inputs, scale=0.7, statistics=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.autograd.grad(first[0].square().sum(), list(inputs.values()))
    for name, value in inputs.items():
        assert torch.equal(value, before[name]), name


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
    from functorch.compile import make_boxed_func
    from torch._dynamo.backends.common import aot_autograd

    graphs: list[list[str]] = []

    def record(module: Any, example_inputs: Any) -> Any:
        names = [str(node.target) for node in module.graph.nodes if node.op == "call_function"]
        graphs.append([n for n in names if "getitem" not in n and "detach" not in n])
        return make_boxed_func(module.forward)

    inputs = make_inputs((2, 6, 3, 5), torch.float32, layout)
    values = list(inputs.values())
    y, statistics = triton_op(**inputs, scale=scale, statistics=True)
    expected = torch.autograd.grad(y.square().sum(), values)
    for backend in (aot_autograd(fw_compiler=record, bw_compiler=record), "aot_eager"):
        torch._dynamo.reset()
        compiled = torch.compile(triton_op, fullgraph=True, backend=backend)
        got, got_statistics = compiled(**inputs, scale=scale, statistics=True)
        assert in_channels_last(got) == in_channels_last(y)
        torch.testing.assert_close((got, got_statistics), (y, statistics))
        for a, b in zip(torch.autograd.grad(got.square().sum(), values), expected, strict=True):
            torch.testing.assert_close(a, b)
    forward, backward = graphs
    assert forward == ["fasttrain.residual_scale.default"]
    assert sum("aten.mul" in name for name in backward) == (1 if scale == 1 else 2)
    assert sum("aten.sum" in name for name in backward) == 1


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("statistics", [True, False])
def test_registration_is_sound(layout, statistics: bool) -> None:
    """torch's own checks of schema, fake and autograd registration."""
    for shape in ((2, 6, 3, 5), (0, 6, 3, 5)):
        inputs = make_inputs(shape, torch.float32, layout)
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        arguments = (*inputs.values(), 0.7, statistics)
        torch.library.opcheck(op_file._forward.custom, arguments, test_utils=tests)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize(("shape", "chunks"), [((0, 4, 17, 17), 2), ((2, 4, 0, 3), 0)])
def test_an_empty_batch(op, shape: tuple[int, ...], chunks: int) -> None:
    inputs = make_inputs(shape, torch.float32)
    y, statistics = op(**inputs, scale=0.7, statistics=True)
    assert y.shape == shape
    assert statistics.shape == (shape[0], chunks, 4, 2)
    y.sum().backward()
    assert torch.equal(inputs["bias"].grad, torch.zeros_like(inputs["bias"]))


def test_auto_takes_the_reference_for_float64() -> None:
    inputs = make_inputs((2, 6, 3, 5), torch.float64, bias=torch.float64)
    y, statistics = residual_scale(**inputs, scale=0.7, statistics=True)
    assert torch.equal(y, residual_scale_reference(**inputs, scale=0.7))
    torch.testing.assert_close(statistics, partial_statistics(y))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"branch": torch.zeros(3)},
            r"branch must be a floating-point tensor \[N, C, ...\].*\[3\]",
        ),
        ({"branch": torch.zeros(2, 6, 3, dtype=torch.int64)}, "floating-point.*torch.int64"),
        (
            {"residual": torch.zeros(2, 6, 3, 1)},
            r"\[2, 6, 3, 3\] as branch is, got.*\[2, 6, 3, 1\]",
        ),
        ({"residual": torch.zeros(2, 6, 3, 3).half()}, "must be torch.float32.*got torch.float16"),
        ({"bias": torch.zeros(3)}, r"bias must be \[6\] as branch has, got \[3\]"),
        ({"bias": torch.zeros(1, 6)}, r"bias must be \[6\] as branch has, got \[1, 6\]"),
        ({"impl": "fast"}, "unknown implementation 'fast'"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    zeros = torch.zeros(2, 6, 3, 3)
    with pytest.raises(ValueError, match=message):
        residual_scale(**{"branch": zeros, "residual": zeros, **changes})
