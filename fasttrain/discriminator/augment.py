"""Differentiable augmentation of the discriminator's inputs, real images and fakes alike (Zhao et
al., "Differentiable Augmentation for Data-Efficient GAN Training", arXiv 2006.10738). For small
data sets; off in every published recipe.

    flip          mirrored with probability 1/2
    color         brightness + U(-0.5, 0.5), then saturation x U(0, 2), then contrast x U(0.5, 1.5)
    translation   by up to 1/8 of the size in each direction, zeros come in
    cutout        a square of half the size set to zero, anywhere, also partly outside

Each image's draws are a function of (seed, stream, its index) alone.

    seen = augment(images, ("color", "cutout"), seed, Stream.AUGMENT_REAL, batch.index)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fasttrain.sampling.draws import Stream
from fasttrain.settings.base import Augmentation
from fasttrain_kernels import counter_uniform

__all__ = ["augment", "random_crop"]


def augment(
    images: Tensor, kinds: Sequence[Augmentation], seed: int, stream: int, index: Tensor
) -> Tensor:
    """images [N, C, H, W] in [-1, 1], index int64 [N] -> the same shape, differentiable. Without
    kinds the images themselves."""
    if not kinds:
        return images
    u = counter_uniform(seed, int(stream), index, (8,)).to(images.dtype)
    if "flip" in kinds:
        images = torch.where(_column(u[:, 0] < 0.5), images.flip(3), images)
    if "color" in kinds:
        images = _color(images, u[:, 1:4])
    if "translation" in kinds:
        images = _translated(images, u[:, 4:6])
    if "cutout" in kinds:
        images = images * _kept(images, u[:, 6:8])
    return images


def _column(values: Tensor) -> Tensor:
    return values[:, None, None, None]


def _color(x: Tensor, u: Tensor) -> Tensor:
    x = x + (_column(u[:, 0]) - 0.5)
    grey = x.mean(1, keepdim=True)
    x = grey + (x - grey) * (2 * _column(u[:, 1]))
    mean = x.mean((1, 2, 3), keepdim=True)
    return mean + (x - mean) * (_column(u[:, 2]) + 0.5)


def _rows_and_columns(x: Tensor) -> tuple[Tensor, Tensor]:
    height, width = x.shape[2:]
    return torch.arange(height, device=x.device), torch.arange(width, device=x.device)


def _translated(x: Tensor, u: Tensor) -> Tensor:
    """Pixel (i, j) of the result is pixel (i + a, j + b) of the input, zero outside."""
    sizes = x.shape[2:]
    for axis, (size, places) in enumerate(zip(sizes, _rows_and_columns(x), strict=True)):
        most = int(size / 8 + 0.5)
        move = (u[:, axis] * (2 * most + 1)).floor().long().clamp(max=2 * most) - most
        source = places + move[:, None]
        shape = (len(x), 1, size, 1) if axis == 0 else (len(x), 1, 1, size)
        there = ((source >= 0) & (source < size)).view(shape)
        at = source.clamp(0, size - 1).view(shape).expand(x.shape)
        x = x.gather(2 + axis, at) * there
    return x


def _kept(x: Tensor, u: Tensor) -> Tensor:
    """Mask [N, 1, H, W]: 1 outside each image's square and 0 inside."""
    inside = []
    for axis, (size, places) in enumerate(zip(x.shape[2:], _rows_and_columns(x), strict=True)):
        length = int(size / 2 + 0.5)
        centre = (u[:, axis] * (size + 1 - length % 2)).floor()
        start = centre[:, None] - length // 2
        inside.append((places >= start) & (places < start + length))
    rows, columns = inside
    return (~(rows[:, :, None] & columns[:, None, :]))[:, None].to(x.dtype)


def random_crop(images: Tensor, size: int, seed: int, index: Tensor | None) -> Tensor:
    """A square of `size` pixels a side of each of the images [N, C, H, W], somewhere; smaller
    images as they are. Differentiable.

    index: as of `augment`; None, for measurements: draws of torch's.
    """
    height, width = images.shape[-2:]
    if max(height, width) <= size:
        return images
    if index is None:
        u = torch.rand(len(images), 2, device=images.device)
    else:
        u = counter_uniform(seed, int(Stream.CROP), index, (2,))
    # Gathered where they lie: places on the host would be waited for, and no graph captures them.
    rows = _places(u[:, 0], height, size)[:, None, :, None]
    images = images.gather(2, rows.expand(-1, images.shape[1], -1, width))
    columns = _places(u[:, 1], width, size)[:, None, None, :]
    return images.gather(3, columns.expand(-1, *images.shape[1:3], -1))


def _places(u: Tensor, length: int, size: int) -> Tensor:
    """`size` places in a row, or all of the `length` if fewer, for each u [N] in [0, 1)."""
    first = (u * (max(0, length - size) + 1)).long()
    return first[:, None] + torch.arange(min(size, length), device=u.device)
