"""resample2d against its definition in float64, borders included.

The kernels run in Triton's interpreter on the CPU, or compiled where there is a GPU and
TRITON_INTERPRET=0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain_kernels import resample
from fasttrain_kernels.dispatch import in_channels_last
from fasttrain_kernels.resample import Mode, Plan, resample2d
from tests.kernels.resample_definition import (
    BOX,
    LAYOUTS,
    MODES,
    OPS,
    SMOOTH,
    definition,
    make_input,
    reference_op,
    triton_op,
)
from tests.kernels.support import DEVICE, TOLERANCE, guarded, recorder, relative_error

SHAPES = [  # of the smaller map: odd and aligned, one pixel, row or column
    (2, 3, 3, 5),
    (1, 8, 4, 4),
    (2, 6, 1, 1),
    (1, 70, 1, 3),
    (1, 2, 7, 1),
]


pytestmark = pytest.mark.usefixtures("exact_convolutions")


def assert_same_as_definition(
    op: Callable[..., Tensor], x: Tensor, mode: Mode, taps: tuple[float, ...]
) -> None:
    exact = x.detach().double().requires_grad_()
    expected = definition(exact, mode, taps=taps)
    y = op(x, mode, taps=taps)
    assert y.dtype == x.dtype
    assert y.shape == expected.shape
    one_pixel = 1 in (x[0, 0].numel(), y[0, 0].numel())  # lies in both formats at once
    assert one_pixel or in_channels_last(y) == in_channels_last(x)
    assert relative_error(y, expected) < TOLERANCE[y.dtype]

    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    dy = guarded(dy.contiguous(memory_format=layout_of(y)), y.dtype)
    (grad,) = torch.autograd.grad(y, x, dy)
    (expected_grad,) = torch.autograd.grad(expected, exact, dy.double())
    assert grad.dtype == x.dtype
    assert one_pixel or in_channels_last(grad) == in_channels_last(x)
    assert relative_error(grad, expected_grad) < TOLERANCE[grad.dtype]


def layout_of(x: Tensor) -> torch.memory_format:
    return torch.channels_last if in_channels_last(x) else torch.contiguous_format


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("taps", [BOX, SMOOTH], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_shapes_dtypes_and_layouts(op, mode, taps, layout, dtype) -> None:
    for shape in SHAPES if dtype == torch.float32 else SHAPES[:2]:
        assert_same_as_definition(op, make_input(shape, mode, dtype, layout), mode, taps)


@pytest.mark.parametrize("plan", [Plan(2, 4, 1), Plan(1, 64, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("taps", [BOX, SMOOTH], ids=str)
def test_tiles(plan, layout, taps, monkeypatch) -> None:
    """Tiles that end within a row, and tails of channels and of pixels."""
    monkeypatch.setattr(resample, "plan", lambda *sizes: plan)
    for mode in MODES:
        x = make_input((1, 3, 3, 5), mode, layout=layout)
        assert_same_as_definition(triton_op, x, mode, taps)


@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_doubling_with_a_box_is_exact(dtype: torch.dtype) -> None:
    x = make_input((2, 3, 3, 5), "up", dtype).detach()
    expected = x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
    for op in OPS.values():
        assert torch.equal(op(x, "up"), expected)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("taps", [BOX, SMOOTH], ids=str)
def test_each_is_the_others_adjoint(taps, layout) -> None:
    """up^T = 4 down, as whole matrices: a unit vector a channel, for every pixel of a map. Then
    <up x, y> = <x, 4 down y> for a larger one."""
    height, width = 3, 2
    pixels = torch.eye(height * width, device=DEVICE).view(1, -1, height, width)
    larger = torch.eye(4 * height * width, device=DEVICE).view(1, -1, 2 * height, 2 * width)
    up, down = (
        triton_op(t.contiguous(memory_format=layout), mode, taps=taps)[0].flatten(1)
        for t, mode in zip((pixels, larger), MODES, strict=True)
    )
    torch.testing.assert_close(up, 4 * down.T, rtol=0, atol=1e-6)
    x, y = make_input((2, 3, 5, 4), "up").detach(), make_input((2, 3, 5, 4), "down").detach()
    left = (triton_op(x, "up", taps=taps).double() * y.double()).sum()
    right = (x.double() * triton_op(y, "down", taps=taps).double()).sum()
    torch.testing.assert_close(left, 4 * right, rtol=1e-5, atol=1e-5)


def test_other_memory_and_gradients_of_other_formats() -> None:
    """Neither contiguous nor channels_last, sliced, and a dy that lies otherwise than y."""
    whole = make_input((2, 6, 4, 6), "down").detach()
    for x in (whole.mT, whole[:, ::2], whole[..., 2:8]):
        assert not x.is_contiguous()
        assert not in_channels_last(x)
        for mode in MODES:
            leaf = x.detach().requires_grad_()
            y = triton_op(leaf, mode, taps=SMOOTH)
            torch.testing.assert_close(y, reference_op(x, mode, taps=SMOOTH))
            dy = torch.randn_like(y).contiguous(memory_format=torch.channels_last)
            (grad,) = torch.autograd.grad(y, leaf, dy)
            (expected,) = torch.autograd.grad(reference_op(leaf, mode, taps=SMOOTH), leaf, dy)
            torch.testing.assert_close(grad, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("taps", [BOX, SMOOTH], ids=str)
def test_inputs_are_not_overwritten_and_results_repeat(mode: Mode, taps) -> None:
    x = make_input((2, 3, 3, 5), mode)
    before = x.detach().clone()
    y = triton_op(x, mode, taps=taps)
    dy = torch.randn_like(y)
    dy_before = dy.clone()
    first, second = (torch.autograd.grad(y, x, dy, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(y, triton_op(x, mode, taps=taps))
    assert torch.equal(x, before)
    assert torch.equal(dy, dy_before)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("taps", [BOX, SMOOTH, (1, 3)], ids=str)
def test_second_order_of_the_reference(mode: Mode, taps) -> None:
    x = torch.randn(1, 2, 2, 4, dtype=torch.float64, requires_grad=True)

    def op(x: Tensor) -> Tensor:
        return resample2d(x, mode, taps=taps)

    assert torch.autograd.gradcheck(op, (x,))
    assert torch.autograd.gradgradcheck(op, (x,))


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("taps", [BOX, SMOOTH], ids=str)
def test_derivatives_to_the_third_order_through_the_kernels(mode: Mode, taps, layout) -> None:
    """Under create_graph; a quartic of y makes every derivative depend on x."""
    x = make_input((2, 3, 2, 3), mode, layout=layout)

    def derivatives(op: Callable[..., Tensor], x: Tensor) -> list[Tensor]:
        (first,) = torch.autograd.grad((op(x, mode, taps=taps) ** 4).sum(), x, create_graph=True)
        (second,) = torch.autograd.grad(first.square().mean(), x, create_graph=True)
        (third,) = torch.autograd.grad(second.square().mean(), x)
        return [first, second, third]

    expected = derivatives(definition, x.detach().double().requires_grad_())
    for got, e in zip(derivatives(triton_op, x), expected, strict=True):
        assert relative_error(got, e) < 1e-5


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_compiled_graphs_hold_the_op_whole(mode: Mode, layout) -> None:
    graphs: list[list[str]] = []
    x = make_input((2, 3, 3, 5), mode, layout=layout)
    y = triton_op(x, mode, taps=SMOOTH)
    (expected,) = torch.autograd.grad(y.square().sum(), x)
    for backend in (recorder(graphs), "aot_eager"):
        torch._dynamo.reset()
        got = torch.compile(triton_op, fullgraph=True, backend=backend)(x, mode, taps=SMOOTH)
        torch.testing.assert_close(got, y)
        assert in_channels_last(got) == in_channels_last(y)
        (grad,) = torch.autograd.grad(got.square().sum(), x)
        torch.testing.assert_close(grad, expected)
    forward, backward = graphs
    assert forward == ["fasttrain.resample2d.default"]
    assert backward == ["fasttrain.resample2d.default"]


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize("mode", MODES)
def test_registration_is_sound(mode: Mode, layout) -> None:
    """torch's own checks of schema, fake and autograd registration."""
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    for shape in ((2, 3, 3, 5), (0, 3, 3, 5)):
        x = make_input(shape, mode, layout=layout)
        torch.library.opcheck(
            resample._resample.custom, (x, mode, [1, 3, 3, 1], 0.5), test_utils=tests
        )


@pytest.mark.parametrize("op", OPS.values(), ids=OPS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("taps", [BOX, SMOOTH], ids=str)
def test_an_empty_batch(op, mode: Mode, taps) -> None:
    x = make_input((0, 3, 2, 4), mode)
    y = op(x, mode, taps=taps)
    assert y.shape == (0, 3, *((4, 8) if mode == "up" else (2, 4)))
    y.sum().backward()
    assert x.grad.shape == x.shape


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mode": "nearest"}, "mode is 'up' or 'down', not 'nearest'"),
        ({"x": torch.zeros(3, 4, 4)}, r"x must be a floating-point tensor \[N, C, H, W\].*4, 4\]"),
        ({"x": torch.zeros(1, 3, 4, 4, dtype=torch.int32)}, "floating-point tensor.*torch.int32"),
        ({"taps": (1, 2, 1)}, "taps must be an even number of them, got 3"),
        ({"taps": ()}, "taps must be an even number of them, got 0"),
        ({"x": torch.zeros(1, 3, 5, 4)}, "only even sizes can be halved, got 5 x 4"),
        ({"x": torch.zeros(1, 3, 4, 7)}, "only even sizes can be halved, got 4 x 7"),
        (
            {"x": torch.zeros(1, 3, 4, 4, device=DEVICE), "taps": (1, 2, 2, 1), "impl": "triton"},
            r"have the taps .*, not \(1, 2, 2, 1\)",
        ),
        ({"impl": "fast"}, "unknown implementation 'fast'"),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        resample2d(**{"x": torch.zeros(1, 3, 4, 4), "mode": "down", **changes})
