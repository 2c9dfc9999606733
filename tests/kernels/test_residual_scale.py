"""residual_scale against its definition in float64: outputs, statistics, gradients.

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
from tests.kernels.residual_scale_definition import LAYOUTS, OPS, definition, make_inputs, triton_op
from tests.kernels.support import TOLERANCE, guarded, relative_error

op_file: Any = import_module("fasttrain_kernels.residual_scale")
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


def test_inputs_are_not_overwritten_and_results_repeat() -> None:
    inputs = make_inputs((2, 6, 17, 17), torch.float32)
    before = {name: value.detach().clone() for name, value in inputs.items()}
    first = triton_op(**inputs, scale=0.7, statistics=True)
    second = triton_op(**inputs, scale=0.7, statistics=True)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    torch.autograd.grad(first[0].square().sum(), list(inputs.values()))
    for name, value in inputs.items():
        assert torch.equal(value, before[name]), name


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
