"""group_norm against its definition in float64: outputs, every gradient, second order.

The kernel runs in Triton's interpreter on the CPU, or compiled where there is a GPU and
TRITON_INTERPRET=0.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain_kernels import group_norm, group_norm_reference
from fasttrain_kernels._group_norm_plans import WholePlan
from fasttrain_kernels._tiles import Plan
from tests.kernels.group_norm_definition import (
    NAMES,
    OPTIONS,
    definition,
    make_inputs,
    set_plan,
    triton_op,
)
from tests.kernels.support import DEVICE, TOLERANCE, guarded, recorder, relative_error

op_file = import_module("fasttrain_kernels.group_norm")

SHAPES = [  # shape, groups: odd and aligned, any trailing dimensions, one pixel, one group
    ((2, 6, 3, 5), 2),
    ((1, 9, 7, 3), 3),
    ((2, 8, 4, 4), 2),
    ((1, 16, 8, 8), 4),
    ((3, 5, 11), 1),
    ((2, 12), 3),
    ((2, 6, 2, 3, 2), 3),
]
PLANS = {
    "one tile": None,
    "loop over pixels": WholePlan(together=1, fits=False, block_c=16, block_p=4, num_warps=1),
    "loop over channels": WholePlan(together=1, fits=False, block_c=2, block_p=64, num_warps=1),
    "loop over both": WholePlan(together=1, fits=False, block_c=2, block_p=8, num_warps=1),
    "split": Plan(block_c=4, block_p=8, num_warps=1),
}


def assert_same_as_definition(
    op: Callable[..., Tensor], inputs: dict[str, Tensor], **how: Any
) -> None:
    exact = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    expected = definition(**exact, **how)
    y = op(**inputs, **how)
    assert y.dtype == inputs["x"].dtype
    assert y.shape == inputs["x"].shape
    assert relative_error(y, expected) < TOLERANCE[y.dtype]

    generator = torch.Generator().manual_seed(1)
    dy = guarded(torch.randn(y.shape, generator=generator), y.dtype)
    grads = torch.autograd.grad(y, list(inputs.values()), dy)
    expected_grads = torch.autograd.grad(expected, list(exact.values()), dy.double())
    for name, grad, expected_grad in zip(inputs, grads, expected_grads, strict=True):
        assert grad.dtype == inputs[name].dtype, name
        assert grad.shape == inputs[name].shape, name
        assert relative_error(grad, expected_grad) < TOLERANCE[grad.dtype], name


OPS = {"triton": triton_op, "reference": group_norm_reference}


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_shapes_and_dtypes(op, dtype, shape, groups) -> None:
    assert_same_as_definition(op, make_inputs(shape, dtype), groups=groups)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("shape", "groups"), [((1, 6, 3, 5), 2), ((1, 8, 4, 4), 2)])
def test_tiles(plan, dtype, shape, groups, monkeypatch) -> None:
    set_plan(monkeypatch, plan)
    assert_same_as_definition(triton_op, make_inputs(shape, dtype), groups=groups)


def all_options() -> Iterator[tuple[str, ...]]:
    for count in range(len(OPTIONS) + 1):
        yield from itertools.combinations(OPTIONS, count)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("activation", ["silu", "none"])
@pytest.mark.parametrize("options", list(all_options()), ids="-".join)
def test_every_set_of_options(op, activation, options) -> None:
    inputs = make_inputs((1, 6, 1, 3), torch.float32, options)
    assert_same_as_definition(op, inputs, groups=2, activation=activation)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_loops_without_options(plan, monkeypatch) -> None:
    set_plan(monkeypatch, plan)
    inputs = make_inputs((2, 6, 3, 5), torch.float32, ())
    assert_same_as_definition(triton_op, inputs, groups=2, activation="none", eps=1e-6)


@pytest.mark.filterwarnings("ignore:overflow encountered in exp")  # outside the mask, unused
@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_nothing_cancels_far_from_zero(plan, monkeypatch) -> None:
    set_plan(monkeypatch, plan)
    inputs = make_inputs((2, 6, 5, 5), torch.float32, ())
    with torch.no_grad():
        inputs["x"] += 1000
    expected = definition(inputs["x"].detach().double(), groups=2)
    assert relative_error(triton_op(inputs["x"], groups=2), expected) < 1e-4


def test_eps_counts_where_a_group_is_constant() -> None:
    x = torch.full((1, 4, 2, 2), 3.0, device=DEVICE)
    bias = torch.arange(4.0, device=DEVICE)
    for op in OPS.values():
        y = op(x, None, bias, groups=2, activation="none")
        torch.testing.assert_close(y[0, :, 0, 0], bias, atol=1e-4, rtol=0)
    x[0, 0, 0, 0] += 1e-3
    tight, loose = (
        definition(x.double(), groups=2, eps=e, activation="none") for e in (1e-12, 1e-3)
    )
    assert relative_error(triton_op(x, groups=2, eps=1e-3, activation="none"), loose) < 1e-3
    assert relative_error(loose, tight) > 0.5


def test_memory_formats_and_strided_rows() -> None:
    """Channels-last x, gradients with gaps, halves of one projection, rows of stride 0."""
    inputs = make_inputs((2, 6, 3, 5), torch.float32)
    with torch.no_grad():
        projection = torch.cat([inputs["scale"], inputs["shift"]], 1)
        one = inputs["shift_in"][:1].clone()
    inputs["shift_in"] = one.expand(2, 6)
    inputs["scale"], inputs["shift"] = projection.chunk(2, dim=1)
    x = inputs["x"].detach()
    for layout in (x.to(memory_format=torch.channels_last), x.transpose(2, 3).contiguous().mT):
        assert not layout.is_contiguous()
        leaves = {**inputs, "x": layout}
        leaves = {name: t.detach().requires_grad_() for name, t in leaves.items()}
        exact = {name: t.detach().double().requires_grad_() for name, t in leaves.items()}
        y, expected = triton_op(**leaves, groups=2), definition(**exact, groups=2)
        assert relative_error(y, expected) < 3e-6
        dy = torch.randn(2, 6, 5, 3, device=DEVICE).mT
        got = torch.autograd.grad(y, list(leaves.values()), dy)
        for grad, e in zip(
            got, torch.autograd.grad(expected, list(exact.values()), dy.double()), strict=True
        ):
            assert relative_error(grad, e) < 3e-6


@pytest.mark.parametrize("wanted", NAMES)
def test_only_needed_gradients_are_computed(wanted: str, monkeypatch) -> None:
    asked = []
    backward = op_file._backward

    def spy(*args: Any) -> Any:
        asked.append(args[-2:])
        return backward(*args)

    monkeypatch.setattr(op_file, "_backward", spy)
    inputs = make_inputs((2, 6, 3, 5), torch.float32)
    everything = torch.autograd.grad(triton_op(**inputs, groups=2).sum(), list(inputs.values()))
    for name, value in inputs.items():
        value.requires_grad_(name == wanted)
    triton_op(**inputs, groups=2).sum().backward()
    assert asked == [(True, True), (wanted == "x", wanted != "x")]
    for (name, value), expected in zip(inputs.items(), everything, strict=True):
        if name == wanted:
            assert torch.equal(value.grad, expected)
        else:
            assert value.grad is None


def test_inputs_are_not_overwritten_and_results_repeat() -> None:
    inputs = make_inputs((2, 6, 3, 5), torch.float32)
    before = {name: value.detach().clone() for name, value in inputs.items()}
    y = triton_op(**inputs, groups=2)
    dy = torch.randn_like(y)
    dy_before = dy.clone()
    first = torch.autograd.grad(y, list(inputs.values()), dy, retain_graph=True)
    second = torch.autograd.grad(y, list(inputs.values()), dy)
    for name, value in inputs.items():
        assert torch.equal(value, before[name]), name
    assert torch.equal(dy, dy_before)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("options", [OPTIONS, ("weight", "bias"), ()], ids="-".join)
@pytest.mark.parametrize("activation", ["silu", "none", "leaky_relu"])
def test_second_order(options: tuple[str, ...], activation: str) -> None:
    """gradgradcheck through the op. In float64, which the public function leaves to the reference:
    what is checked is the formula that runs under create_graph."""
    inputs = make_inputs((2, 4, 1, 3), torch.float32, options)
    present = list(inputs)
    values = [inputs[name].detach().double().requires_grad_() for name in present]

    def op(*tensors: Tensor) -> Tensor:
        named = dict(zip(present, tensors, strict=True))
        ordered = [named.get(name) for name in NAMES]
        return op_file._forward(*ordered, 2, 1e-5, activation, None)[0]

    assert torch.autograd.gradgradcheck(op, values, atol=1e-4, fast_mode=True)


@pytest.mark.parametrize("entangled", [False, True])
def test_gradient_penalty_equals_the_definition(entangled: bool) -> None:
    """As R1 uses it: the gradient by every input of a squared gradient by x. Entangled: an input
    that was itself made from x must not be differentiated twice."""
    inputs = make_inputs((2, 6, 3, 2), torch.float32)

    def penalty_gradients(op: Callable[..., Tensor], t: dict[str, Tensor]) -> tuple[Tensor, ...]:
        used = {**t, "scale": t["scale"] * t["x"].mean((2, 3))} if entangled else t
        y = op(**used, groups=2)
        (dx,) = torch.autograd.grad((y**2).sum(), t["x"], create_graph=True)
        return torch.autograd.grad((dx**2).sum(), list(t.values()))

    exact = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    expected = penalty_gradients(definition, exact)
    for name, got, e in zip(inputs, penalty_gradients(triton_op, inputs), expected, strict=True):
        assert relative_error(got, e) < 1e-5, name


def test_compiled_graphs_hold_the_op_whole() -> None:
    graphs: list[list[str]] = []
    inputs = make_inputs((2, 6, 3, 5), torch.float32)
    expected = torch.autograd.grad(triton_op(**inputs, groups=2).sum(), list(inputs.values()))
    for backend in (recorder(graphs), "aot_eager"):
        torch._dynamo.reset()
        compiled = torch.compile(triton_op, fullgraph=True, backend=backend)
        got = torch.autograd.grad(compiled(**inputs, groups=2).sum(), list(inputs.values()))
        for a, b in zip(got, expected, strict=True):
            torch.testing.assert_close(a, b)
    forward, backward = graphs
    assert forward == ["fasttrain.group_norm.default"]
    assert sum("fasttrain.group_norm_backward" in name for name in backward) == 1
    assert not any("group_norm" in name and "fasttrain" not in name for name in forward + backward)


def test_registration_is_sound() -> None:
    """torch's own checks of schema, fake and autograd registration."""
    inputs = make_inputs((2, 6, 3, 5), torch.float32, ("weight", "bias", "scale"))
    arguments = (*(inputs.get(name) for name in NAMES), 2, 1e-5, "silu", None)
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(op_file._forward.custom, arguments, test_utils=tests)


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("options", [(), ("weight", "bias"), ("bias",), OPTIONS])
@pytest.mark.parametrize("shape", [(0, 4, 3, 3), (2, 4, 0, 3), (2, 4, 0)])
def test_no_samples_or_no_pixels(shape: tuple[int, ...], options: Any, op: Any) -> None:
    """Sums over nothing: every gradient is zero, in memory that held NaN before."""
    inputs = make_inputs(shape, torch.float32, options)
    y = op(**inputs, groups=2)
    assert y.shape == shape
    grads = torch.autograd.grad(y.sum(), list(inputs.values()))
    for value, grad in zip(inputs.values(), grads, strict=True):
        assert torch.equal(grad, torch.zeros_like(value))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": 4}, "groups must divide the channels: got 6 channels, 4 groups"),
        ({"groups": 0}, "groups must divide the channels"),
        ({"x": torch.zeros(6)}, r"x must be a floating-point tensor \[N, C, ...\].*\[6\]"),
        ({"x": torch.zeros(2, 6, 2, dtype=torch.int64)}, "floating-point tensor.*torch.int64"),
        ({"weight": torch.ones(3)}, r"weight must be \[6\] as x has, got \[3\]"),
        ({"bias": torch.ones(1, 6)}, r"bias must be \[6\]"),
        ({"scale": torch.ones(2, 6, 1, 1)}, r"scale must be \[2, 6\] as x has, got \[2, 6, 1, 1\]"),
        ({"shift": torch.ones(6)}, r"shift must be \[2, 6\]"),
        ({"shift_in": torch.ones(1, 6)}, r"shift_in must be \[2, 6\]"),
        ({"impl": "fast"}, "unknown implementation 'fast'"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_norm(**{"x": torch.zeros(2, 6, 3, 3), "groups": 2, **changes})


def test_a_fork_adds_the_other_gradient_as_it_stores() -> None:
    """x goes on beside the norm: its gradient is one tensor from one node, and no sum of two."""
    inputs = make_inputs((2, 6, 3, 5), torch.float32, ("weight", "bias"))
    exact = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    y, x = triton_op(**inputs, groups=2, fork=True)
    assert torch.equal(x, inputs["x"])
    assert y.grad_fn is x.grad_fn or x.grad_fn.next_functions[0][0] is y.grad_fn
    got = torch.autograd.grad((y.square() + 3 * x).sum(), list(inputs.values()))
    expected = definition(**exact, groups=2).square() + 3 * exact["x"]
    for a, b in zip(got, torch.autograd.grad(expected.sum(), list(exact.values())), strict=True):
        assert relative_error(a, b) < 1e-5
    y, x = triton_op(**inputs, groups=2, fork=True)  # without a gradient for y
    assert torch.equal(torch.autograd.grad(x.sum(), inputs["x"])[0], torch.ones_like(inputs["x"]))
