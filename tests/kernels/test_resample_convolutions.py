"""resample2d and upsampled_weight as the convolutions they stand for or commute with."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels.resample import Mode, resample2d, upsampled_weight
from tests.kernels.resample_definition import BOX, MODES, SMOOTH, definition, make_input
from tests.kernels.support import DEVICE, relative_error

pytestmark = pytest.mark.usefixtures("exact_convolutions")
OTHER = ((1, 2, 2, 1), (1, 5, 10, 10, 5, 1), (0.5, 0.5, 1.0, 2.0), (1, 3))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("taps", [BOX, SMOOTH, *OTHER], ids=str)
def test_the_published_convolutions(mode: Mode, taps: tuple[float, ...]) -> None:
    """Exactly what the U-Nets of EDM compute, for any even number of taps, symmetric or not."""
    x = make_input((2, 3, 4, 5), mode).detach()
    line = torch.tensor(taps)
    filters = (torch.outer(line, line) / line.sum() ** 2).expand(3, 1, -1, -1).to(x)
    options: dict[str, Any] = {"stride": 2, "padding": len(taps) // 2 - 1, "groups": 3}
    if mode == "up":
        expected = F.conv_transpose2d(x, 4 * filters, **options)
    else:
        expected = F.conv2d(x, filters, **options)
    for impl in ("auto", "reference", *(["triton"] if taps in (BOX, SMOOTH) else [])):
        torch.testing.assert_close(resample2d(x, mode, taps=taps, impl=impl), expected)
    assert relative_error(definition(x.double(), mode, taps=taps), expected) < 1e-6


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (2, 7)])
@pytest.mark.parametrize("with_bias", [True, False])
def test_doubling_and_a_convolution_are_one_transposed_convolution(size, with_bias: bool) -> None:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        values = torch.randn(*shape, generator=generator, dtype=torch.float64)
        return values.requires_grad_()

    x, weight = draw(2, 3, *size), draw(4, 3, 3, 3)
    bias = draw(4) if with_bias else None
    leaves = [x, weight, *([bias] if bias is not None else [])]
    expected = F.conv2d(F.interpolate(x, scale_factor=2.0), weight, bias, padding=1)
    got = F.conv_transpose2d(x, upsampled_weight(weight), bias, stride=2, padding=1)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    dy = draw(*expected.shape).detach()
    for a, b in zip(
        torch.autograd.grad(got, leaves, dy),
        torch.autograd.grad(expected, leaves, dy),
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradgradcheck(upsampled_weight, (draw(2, 1, 3, 3),))


def test_an_upsampled_weight_of_16_bits_is_rounded_once() -> None:
    weight = torch.randn(3, 4, 3, 3).bfloat16().contiguous(memory_format=torch.channels_last)
    exact = upsampled_weight(weight.double())
    assert torch.equal(upsampled_weight(weight), exact.to(torch.bfloat16))


def test_upsampled_weight_takes_kernels_of_three() -> None:
    with pytest.raises(ValueError, match=r"weight must be \[O, C, 3, 3\], got \[4, 3, 1, 1\]"):
        upsampled_weight(torch.zeros(4, 3, 1, 1))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("taps", [BOX, SMOOTH], ids=str)
def test_a_1x1_convolution_commutes(mode: Mode, taps) -> None:
    """Its bias commutes, too, wherever the filter stays inside of x: everywhere with (1, 1); with
    (1, 3, 3, 1) all but the outermost rows and columns, where a part of it falls on zeros."""
    x = make_input((2, 3, 4, 5), mode).detach().double()
    weight = torch.randn(4, 3, 1, 1, dtype=torch.float64, device=DEVICE)
    bias = torch.tensor([1.0, -2.0, 3.0, 0.5], dtype=torch.float64, device=DEVICE)

    def resampled(t: Tensor) -> Tensor:
        return resample2d(t, mode, taps=taps)

    expected = F.conv2d(resampled(x), weight)
    small_first = resampled(F.conv2d(x, weight))
    torch.testing.assert_close(small_first, expected, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        small_first + bias[:, None, None], F.conv2d(resampled(x), weight, bias)
    )

    edge = {BOX: 1.0, SMOOTH: 3 / 4 if mode == "up" else 7 / 8}[taps]
    rows, columns = (torch.ones(n, dtype=torch.float64) for n in expected.shape[2:])
    for line in (rows, columns):
        line[0] = line[-1] = edge
    kept = bias[:, None, None] * torch.outer(rows, columns).to(DEVICE)
    torch.testing.assert_close(resampled(F.conv2d(x, weight, bias)), expected + kept)
