"""upsample_add against torch's bilinear interpolation in float64: outputs, gradients of three
orders, layouts. The kernels run in Triton's interpreter on the CPU."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels import upsample_add
from fasttrain_kernels.dispatch import in_channels_last
from tests.kernels.support import DEVICE, TOLERANCE, assert_matches, compiled_ops, guarded

op_file: Any = import_module("fasttrain_kernels.scale_mixing")

LAYOUTS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}
SHAPES = [(2, 3, 3, 5), (1, 8, 4, 4), (2, 6, 1, 1), (1, 70, 1, 3), (1, 2, 7, 2), (1, 40, 1, 9)]
IMPLS = ("triton", "reference")


def definition(x: Tensor, lateral: Tensor | None = None) -> Tensor:
    y = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
    return y if lateral is None else y + lateral


def make_inputs(
    shape: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    layout: torch.memory_format = torch.contiguous_format,
    lateral: bool = True,
) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    large = (*shape[:2], 2 * shape[2], 2 * shape[3])
    return [
        guarded(
            torch.randn(size, generator=generator).contiguous(memory_format=layout), dtype
        ).requires_grad_()
        for size in (shape, *([large] if lateral else []))
    ]


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_shapes_dtypes_and_layouts(impl: Any, layout, dtype) -> None:
    for shape in SHAPES if dtype == torch.float32 else SHAPES[1:2]:
        # Without a lateral map the forward pass leaves one addition out; the adjoint is the same.
        for lateral in (True, False) if shape in SHAPES[:1] else (True,):
            inputs = make_inputs(shape, dtype, layout, lateral)
            assert_matches(lambda *x: upsample_add(*x, impl=impl), definition, *inputs)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_tiles_that_end_within_a_row(layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_file, "plan", lambda *sizes: op_file.Plan(2, 4, 1))
    inputs = make_inputs((1, 3, 2, 3), layout=layout)
    assert_matches(lambda *x: upsample_add(*x, impl="triton"), definition, *inputs)


def test_the_result_lies_as_x_does_and_others_are_copied() -> None:
    x, lateral = (t.detach() for t in make_inputs((2, 3, 3, 5)))
    expected = definition(x, lateral)
    last = x.contiguous(memory_format=torch.channels_last)
    assert in_channels_last(upsample_add(last, lateral, impl="triton"))
    for a, b in ((last, lateral), (x, lateral.mT.contiguous().mT)):
        torch.testing.assert_close(upsample_add(a, b, impl="triton"), expected)


def test_the_adjoint_misses_no_output() -> None:
    """<up x, y> = <x, up^T y> for random x and y: a weight that is missing anywhere would show."""
    for size in (1, 2, 3, 4, 5, 8, 11):
        x = make_inputs((1, 1, 1, size), lateral=False)[0].detach()
        up = upsample_add(x, impl="triton")
        y = torch.randn(up.shape, generator=torch.Generator().manual_seed(1)).to(DEVICE)
        left, right = (up.double() * y).sum(), (x.double() * op_file._adjoint(y)).sum()
        torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)


def test_derivatives_to_the_third_order_through_the_kernels() -> None:
    """Under create_graph; a quartic of y makes every derivative depend on x."""
    x = make_inputs((1, 2, 2, 3), lateral=False)[0]
    exact = x.detach().double().requires_grad_()

    def derivatives(x: Tensor, y: Tensor) -> list[Tensor]:
        (first,) = torch.autograd.grad(y.pow(4).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.pow(2).sum(), x, create_graph=True)
        (third,) = torch.autograd.grad(second.sum(), x)
        return [first, second, third]

    got = derivatives(x, upsample_add(x, impl="triton"))
    for a, b in zip(got, derivatives(exact, definition(exact)), strict=True):
        torch.testing.assert_close(a.double(), b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


def test_second_order_of_the_reference() -> None:
    x = torch.randn(1, 2, 2, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(upsample_add, (x,))
    assert torch.autograd.gradgradcheck(upsample_add, (x,))


def test_compiled_graphs_hold_the_op_whole() -> None:
    inputs = make_inputs((1, 2, 2, 3))
    forward, backward = compiled_ops(lambda *x: upsample_add(*x, impl="triton"), *inputs)
    assert forward == {"fasttrain.upsample_add.default"}
    assert backward == {"fasttrain.upsample_add_adjoint.default"}


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_registration_is_sound(layout) -> None:
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for shape in ((2, 3, 2, 3), (0, 3, 2, 3)):
        torch.library.opcheck(
            op_file._up.custom, tuple(make_inputs(shape, layout=layout)), test_utils=tests
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3, 4, 4),), r"floating-point tensor \[N, C, H, W\]"),
        ((torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 5)), r"lateral must be .* \[1, 1, 4, 4\]"),
        ((torch.zeros(1, 1, 2, 2), torch.zeros(1, 1, 4, 4).double()), "lateral must be"),
    ],
)
def test_bad_arguments(arguments: tuple[Tensor, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        upsample_add(*arguments)
