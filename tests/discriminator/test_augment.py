"""Augmentation against its definition image by image, its draws, and its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.discriminator.augment import augment
from fasttrain.sampling.draws import Stream
from fasttrain_kernels import counter_uniform

KINDS: tuple[Any, ...] = ("flip", "color", "translation", "cutout")
STREAM = Stream.AUGMENT_REAL


def images(n: int = 6, height: int = 8, width: int = 9, channels: int = 3) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (n, channels, height, width)
    return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


def one_by_one(x: Tensor, kind: str, index: Tensor) -> Tensor:
    """The definition, with loops."""
    u = counter_uniform(5, int(STREAM), index, (8,)).double()
    _, height, width = x.shape[1:]
    results = []
    for image, draw in zip(x, u, strict=True):
        y = image.clone()
        if kind == "flip" and draw[0] < 0.5:
            y = torch.stack([image[:, :, width - 1 - j] for j in range(width)], dim=2)
        if kind == "color":
            y = y + draw[1] - 0.5
            grey = y.mean(0)
            y = torch.stack([grey + 2 * draw[2] * (channel - grey) for channel in y])
            y = y.mean() + (draw[3] + 0.5) * (y - y.mean())
        if kind == "translation":
            down = int(draw[4] * (2 * round(height / 8) + 1)) - round(height / 8)
            right = int(draw[5] * (2 * round(width / 8) + 1)) - round(width / 8)
            y = torch.zeros_like(image)
            for i in range(height):
                for j in range(width):
                    if 0 <= i + down < height and 0 <= j + right < width:
                        y[:, i, j] = image[:, i + down, j + right]
        if kind == "cutout":
            tall, wide = int(height / 2 + 0.5), int(width / 2 + 0.5)
            top = int(draw[6] * (height + 1 - tall % 2)) - tall // 2
            left = int(draw[7] * (width + 1 - wide % 2)) - wide // 2
            for i in range(max(0, top), min(height, top + tall)):
                for j in range(max(0, left), min(width, left + wide)):
                    y[:, i, j] = 0
        results.append(y)
    return torch.stack(results)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_the_definition(kind: Any, channels: int) -> None:
    x, index = images(24, channels=channels), torch.arange(100, 124)
    got = augment(x, (kind,), 5, STREAM, index)
    torch.testing.assert_close(got, one_by_one(x, kind, index))
    assert not torch.equal(got, x)


def test_all_in_their_order() -> None:
    x, index = images(), torch.arange(6)
    expected = x
    for kind in KINDS:
        expected = one_by_one(expected, kind, index)
    torch.testing.assert_close(augment(x, KINDS, 5, STREAM, index), expected)
    torch.testing.assert_close(augment(x, KINDS[::-1], 5, STREAM, index), expected)


def test_a_draw_depends_on_the_images_index_alone() -> None:
    x, index = images(), torch.arange(6)
    whole = augment(x, KINDS, 5, STREAM, index)
    halves = [augment(x[k : k + 2], KINDS, 5, STREAM, index[k : k + 2]) for k in (0, 2, 4)]
    torch.testing.assert_close(torch.cat(halves), whole)
    for seed, stream in ((6, STREAM), (5, Stream.AUGMENT_FAKE)):
        assert not torch.allclose(augment(x, KINDS, seed, stream, index), whole)


def test_nothing_asked_for_is_the_images_themselves() -> None:
    x = images()
    assert augment(x, (), 5, STREAM, torch.arange(6)) is x


def test_the_square_is_half_the_size_and_everywhere() -> None:
    """Over many draws: at most a quarter of the image is gone, and every pixel sometimes."""
    kept = augment(torch.ones(400, 1, 8, 8), ("cutout",), 1, STREAM, torch.arange(400))
    gone = 1 - kept.mean((1, 2, 3))
    assert gone.max() == 0.25
    assert gone.min() >= 0.0625  # its centre stays inside or on the edge
    assert (kept.mean(0) < 1).all()


def test_half_of_the_images_are_mirrored() -> None:
    x = torch.arange(4.0).view(1, 1, 1, 4).expand(400, 1, 1, 4)
    flipped = augment(x, ("flip",), 1, STREAM, torch.arange(400))[:, 0, 0, 0] == 3
    assert 160 < flipped.sum() < 240


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind: Any) -> None:
    x = images(3, 4, 4).requires_grad_()
    index = torch.arange(3)

    def op(x: Tensor) -> Tensor:
        return augment(x, (kind,), 5, STREAM, index)

    assert torch.autograd.gradcheck(op, (x,))
    assert torch.autograd.gradgradcheck(op, (x,))
