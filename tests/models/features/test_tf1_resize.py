"""TensorFlow 1's resize against its definition, pixel by pixel."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain.models.features.tf1_resize import tf1_bilinear


def by_definition(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """One channel in float64: pixel i is taken at i * in / out, with the last pixel repeated."""
    height, width = image.shape
    made = np.zeros(size)
    for i in range(size[0]):
        for j in range(size[1]):
            y, x = i * height / size[0], j * width / size[1]
            top, left = math.floor(y), math.floor(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[top, left] + (image[top, right] - image[top, left]) * (x - left)
            lower = image[bottom, left] + (image[bottom, right] - image[bottom, left]) * (x - left)
            made[i, j] = upper + (lower - upper) * (y - top)
    return made


def levels(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, shape, generator=draw).float()


@pytest.mark.parametrize(
    ("size", "wanted"),
    [
        ((5, 7), (9, 8)),
        ((8, 8), (3, 3)),
        ((6, 4), (6, 12)),
        ((1, 1), (4, 4)),
        ((32, 32), (299, 299)),
    ],
)
def test_every_pixel_is_that_of_the_definition(size, wanted) -> None:
    images = levels(2, 3, *size)
    made = tf1_bilinear(images, wanted)
    assert made.shape == (2, 3, *wanted)
    for image, channel in ((0, 0), (1, 2)):
        expected = by_definition(images[image, channel].double().numpy(), wanted)
        np.testing.assert_allclose(made[image, channel].numpy(), expected, atol=2e-3)


def test_it_is_not_torchs_resize_but_begins_where_the_image_begins() -> None:
    images = levels(1, 1, 8, 8)
    made, torchs = tf1_bilinear(images, (16, 16)), F.interpolate(images, (16, 16), mode="bilinear")
    assert (made - torchs).abs().max() > 10
    assert torch.equal(made[..., ::2, ::2], images)
    between = (images[..., :-1] + images[..., 1:]) / 2
    assert torch.equal(made[..., ::2, 1:-1:2], between)
    assert torch.equal(made[..., ::2, -1], images[..., -1])  # beyond the last pixel it is constant


def test_the_same_size_changes_nothing() -> None:
    images = levels(2, 3, 11, 13)
    assert torch.equal(tf1_bilinear(images, (11, 13)), images)
