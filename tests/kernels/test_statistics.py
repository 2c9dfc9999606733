"""Partial statistics against a loop over the pixels, and put together again to those of a norm."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fasttrain_kernels.statistics import chunk_count, chunk_pixels, partial_statistics
from tests.kernels.support import guarded

SHAPES = [  # pixels around every boundary, odd ones, any trailing dimensions, none
    (2, 3, 1, 1),
    (1, 2, 3, 5),
    (2, 3, 16, 16),
    (1, 2, 1, 255),
    (1, 2, 1, 257),
    (2, 2, 3, 171),
    (1, 3, 32, 32),
    (2, 3, 41),
    (1, 2, 5, 7, 19),
    (2, 5),
]


def loop(x: Tensor) -> Tensor:
    """Mean and sum of squared deviations of each chunk, one at a time, by their definitions."""
    pixels = math.prod(x.shape[2:])
    size = chunk_pixels(pixels)
    values = x.reshape(*x.shape[:2], pixels)
    out = torch.empty(len(x), -(-pixels // size), x.shape[1], 2, dtype=torch.float64)
    for sample in range(len(x)):
        for channel in range(x.shape[1]):
            for chunk, start in enumerate(range(0, pixels, size)):
                part = values[sample, channel, start : start + size].double()
                mean = part.sum() / len(part)
                out[sample, chunk, channel, 0] = mean
                out[sample, chunk, channel, 1] = sum((v - mean) ** 2 for v in part)
    return out


def put_together(statistics: Tensor, pixels: int, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [N, groups], from the module's formula in the dtype given."""
    samples, chunks, channels, _ = statistics.shape
    size = chunk_pixels(pixels)
    counts = [min(size, pixels - chunk * size) for chunk in range(chunks)]
    n = torch.tensor(counts, dtype=statistics.dtype)[:, None, None]
    parts = statistics.view(samples, chunks, groups, channels // groups, 2)
    mean, m2 = parts.unbind(-1)
    total = pixels * channels // groups
    whole = (n * mean).sum((1, 3)) / total
    spread = n * (mean - whole[:, None, :, None]) ** 2
    return whole, (m2 + spread).sum((1, 3)) / total


@pytest.mark.parametrize(
    ("pixels", "size", "count"),
    [
        (1, 1, 1), (2, 2, 1), (3, 4, 1), (15, 16, 1), (64, 64, 1), (65, 128, 1), (255, 256, 1),
        (256, 256, 1), (257, 256, 2), (512, 256, 2), (513, 256, 3), (4096, 256, 16), (0, 1, 0),
    ],
)  # fmt: skip
def test_chunks(pixels: int, size: int, count: int) -> None:
    assert (chunk_pixels(pixels), chunk_count(pixels)) == (size, count)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", SHAPES)
def test_against_a_loop(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    """Of the values as stored: a 16-bit input is not rounded again."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 2 + 0.5
    x = guarded(x, dtype).cpu()
    got = partial_statistics(x)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.is_contiguous()
    tolerance = 1e-12 if dtype == torch.float64 else 3e-6
    torch.testing.assert_close(got.double(), loop(x), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shape", [(2, 3, 15, 17), (2, 3, 16, 16), (2, 3, 17, 16), (2, 3, 3, 172)])
def test_chunk_boundaries(shape: tuple[int, ...]) -> None:
    """A pixel counts in its own chunk and in no other."""
    pixels = math.prod(shape[2:])
    clean = partial_statistics(torch.zeros(shape))
    assert torch.equal(clean, torch.zeros_like(clean))
    for pixel in {0, 254, 255, 256, 257, 511, 512, pixels - 1} & set(range(pixels)):
        x = torch.zeros(shape)
        x.view(2, 3, -1)[1, 2, pixel] = 1.0
        touched = partial_statistics(x).ne(0).nonzero().tolist()
        assert touched == [[1, pixel // 256, 2, 0], [1, pixel // 256, 2, 1]]


def test_a_constant_map_has_exactly_no_deviation() -> None:
    got = partial_statistics(torch.full((1, 2, 17, 17), 1000.0))
    assert torch.equal(got[..., 0], torch.full_like(got[..., 0], 1000.0))
    assert torch.equal(got[..., 1], torch.zeros_like(got[..., 1]))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_formats_slices_and_inputs(layout: torch.memory_format) -> None:
    x = torch.randn(2, 6, 17, 19).contiguous(memory_format=layout)
    before = x.clone()
    expected = loop(x)
    torch.testing.assert_close(partial_statistics(x).double(), expected, rtol=3e-6, atol=3e-6)
    torch.testing.assert_close(
        partial_statistics(x[:, ::2]).double(), expected[:, :, ::2], rtol=3e-6, atol=3e-6
    )
    assert torch.equal(x, before)


def test_statistics_of_a_concatenation_are_concatenated() -> None:
    x, skip = torch.randn(2, 3, 17, 19), torch.randn(2, 5, 17, 19) * 3 + 1
    both = torch.cat([partial_statistics(x), partial_statistics(skip)], dim=2)
    assert torch.equal(both, partial_statistics(torch.cat([x, skip], dim=1)))


def test_a_shift_of_a_channel_moves_only_its_means() -> None:
    """As group norm uses it with `shift_in`. Eighths, so that the sums are exact."""
    x = (torch.randn(2, 3, 17, 16) * 8).round() / 8
    shift = torch.tensor([1.0, -2.0, 0.5])
    plain, moved = (partial_statistics(t) for t in (x, x + shift[:, None, None]))
    torch.testing.assert_close(moved[..., 0], plain[..., 0] + shift, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(moved[..., 1], plain[..., 1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("mean", [0.0, 1000.0, -30000.0])
@pytest.mark.parametrize("groups", [1, 2, 6])
@pytest.mark.parametrize("size", [(3, 5), (16, 16), (17, 19)])
def test_put_together_they_give_a_groups_statistics(size, groups: int, mean: float) -> None:
    """In float32, with a deviation of 1 far from zero, where E[x^2] - E[x]^2 has no digit left."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 6, *size, generator=generator) + mean
    exact = x.double().reshape(2, groups, -1)
    got_mean, got_variance = put_together(partial_statistics(x), math.prod(size), groups)
    expected_mean, expected_variance = exact.mean(2), exact.var(2, unbiased=False)
    torch.testing.assert_close(got_mean.double(), expected_mean, rtol=3e-7, atol=1e-6)
    # The means, and so their differences, carry float32's last place at that height.
    place = abs(mean) * 2.0**-23
    tolerance = {"rtol": 1e-5 + 4 * place, "atol": 0.0}
    torch.testing.assert_close(got_variance.double(), expected_variance, **tolerance)
    if mean:
        naive = x.square().view(2, groups, -1).mean(2) - x.view(2, groups, -1).mean(2) ** 2
        assert (naive - expected_variance).abs().max() > 10 * tolerance["rtol"]


def test_they_take_no_gradient() -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=True)
    assert not partial_statistics(x).requires_grad


@pytest.mark.parametrize(("shape", "chunks"), [((0, 3, 17, 17), 2), ((2, 3, 0, 4), 0)])
def test_an_empty_batch(shape: tuple[int, ...], chunks: int) -> None:
    assert partial_statistics(torch.zeros(shape)).shape == (shape[0], chunks, 3, 2)
