"""EDM's augmentation of pre-training: images are transformed, and the network receives the
transformations as labels, so that images generated with zero labels show none of them (Karras et
al., "Elucidating the Design Space of Diffusion-Based Generative Models", arXiv 2206.00364, appendix
F.2 and table 6).

With n ~ N(0, 1) and each line independently with probability p (mirroring in x: always 1/2):

    mirrored in x, in y     with p = 1/2                                      labels 0, 1: 0 or 1
    scaled                  by 2^(0.2 n)                                    2: n
    rotated                 by t ~ U(-pi, pi), counter-clockwise            3, 4: cos t - 1, sin t
    stretched               by 2^(0.2 n) along an axis and its inverse      5, 6: n cos r, n sin r
                            across: the x axis, or (odds 1/2) one turned by r ~ U(-pi, pi)
    moved                   by n / 8 of the width, n' / 8 of the height     7, 8: n, n'

The transformations of an image become one affine map, sampled with mirrored borders. Against
aliasing it is sampled at twice the resolution, between the same low-pass filter up and down (a
12-tap symlet: orthogonal, so that without a map up and down cancel exactly). An image without a map
keeps its bits.

Labels 5 and 6 are the published ones, although n along r and -n along r + pi, which is the same
line, have equal labels. Two choices are ours: borders are mirrored without end, where the published
implementation pads by at most the image's size, and then with zeros; and every draw is a function
of (seed, image's index).

    images, augment_labels = edm_augment(images, 0.12, seed, batch.index)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain.sampling.draws import Stream
from fasttrain_kernels import counter_normal, counter_uniform

__all__ = ["edm_augment"]

SCALE_STD = STRETCH_STD = 0.2
MOVE_STD = 0.125

TAPS = (
    0.015404109327027373,
    0.0034907120842174702,
    -0.11799011114819057,
    -0.048311742585633,
    0.4910559419267466,
    0.787641141030194,
    0.3379294217276218,
    -0.07263752278646252,
    -0.021060292512300564,
    0.04472490177066578,
    0.0017677118642428036,
    -0.007800708325034148,
)
"""Daubechies' least asymmetric low-pass of six vanishing moments ("sym6")."""
CENTRE = 5
"""The tap at a sample's own position (the centre of mass is 0.05 pixels from it)."""


@torch.no_grad()
def edm_augment(images: Tensor, p: float, seed: int, index: Tensor) -> tuple[Tensor, Tensor]:
    """images [N, C, H, W] float32, index int64 [N] -> transformed images and their labels
    [N, AUGMENT_DIM] float32."""
    u = counter_uniform(seed, int(Stream.EDM_AUGMENT), index, (10,))
    n = counter_normal(seed, int(Stream.EDM_AUGMENT_NORMAL), index, (4,), device=index.device)
    chosen = u[:, :4] < p  # scaled, rotated, stretched, moved
    mirrored = (u[:, 4] < 0.5) & (p > 0)
    upended = (u[:, 5] < 0.5) & (u[:, 6] < p)
    angle = (2 * u[:, 7] - 1) * math.pi * chosen[:, 1]
    axis = (2 * u[:, 8] - 1) * math.pi * (u[:, 9] < 0.5)
    scale, stretch = n[:, 0] * chosen[:, 0], n[:, 1] * chosen[:, 2]
    move = n[:, 2:] * chosen[:, 3:]

    images = torch.where(mirrored.view(-1, 1, 1, 1), images.flip(3), images)
    images = torch.where(upended.view(-1, 1, 1, 1), images.flip(2), images)
    some = chosen.any(1)
    if some.any():
        height, width = images.shape[2:]
        size = MOVE_STD * torch.tensor([width, height], device=images.device)
        parts = (scale, angle, stretch, axis, move * size)
        images[some] = warped(images[some], *(part[some] for part in parts))
    labels = [mirrored, upended, scale, angle.cos() - 1, angle.sin()]
    labels += [stretch * axis.cos(), stretch * axis.sin(), move[:, 0], move[:, 1]]
    return images, torch.stack([label.float() for label in labels], 1)


def warped(
    images: Tensor, scale: Tensor, angle: Tensor, stretch: Tensor, axis: Tensor, move: Tensor
) -> Tensor:
    """Images scaled, rotated, stretched and moved (by [N, 2] pixels in x and y), in this order."""
    back = rotation(angle) / (SCALE_STD * scale).exp2().view(-1, 1, 1)
    wide = (STRETCH_STD * stretch).exp2()
    across = torch.diag_embed(torch.stack([1 / wide, wide], 1))
    back = back @ rotation(-axis) @ across @ rotation(axis)

    height, width = images.shape[2:]
    centre = torch.tensor([width - 1, height - 1], device=images.device) / 2
    places = [_fine(size, images.device) for size in (width, height)]
    x, y = torch.meshgrid(*places, indexing="xy")
    there = torch.stack([x, y], -1) - centre  # positions in the output, mapped to the input:
    source = (there - move[:, None, None]) @ back[:, None].transpose(2, 3) + centre
    fine = _up(_up(images, 2), 3)
    return _down(_down(_read(fine, source), 2), 3)


def rotation(angle: Tensor) -> Tensor:
    """[N] -> matrices [N, 2, 2] of (x, y), y pointing down."""
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos, -sin, sin, cos], 1).view(-1, 2, 2)


def _fine(size: int, device: torch.device) -> Tensor:
    """Positions in pixels, half a pixel apart, of the samples that `_down` reduces to `size`
    pixels."""
    before = len(TAPS) - 1 - CENTRE
    return torch.arange(-before, 2 * size - 1 + CENTRE, device=device) / 2


def _read(fine: Tensor, source: Tensor) -> Tensor:
    """Bilinear samples at positions in pixels [N, h, w, 2] of images from `_up`."""
    periods = ((fine.shape[3] - 1) // 2, (fine.shape[2] - 1) // 2)
    where = [source[..., k].remainder(size) * (2 / size) - 1 for k, size in enumerate(periods)]
    grid = torch.stack(where, -1)
    return F.grid_sample(fine, grid, "bilinear", padding_mode="border", align_corners=True)


def _up(x: Tensor, axis: int) -> Tensor:
    """Pixels along an axis -> samples half a pixel apart: the filter over the pixels with zeros
    between them, for one period of the endless mirrored line and the beginning of the next."""
    last, reach = x.shape[axis] - 1, len(TAPS) // 4
    period = 2 * last
    places = torch.arange(-reach, period + 1 + reach, device=x.device)
    mirrored = last - (last - places.remainder(period)).abs()
    flat = x.index_select(axis, mirrored).flatten(0, 1)[:, None]
    y = F.conv_transpose2d(flat, _filter(x, axis), stride=_every_other(axis))
    first = 2 * reach + len(TAPS) - 1 - CENTRE
    return y.unflatten(0, x.shape[:2])[:, :, 0].narrow(axis, first, 2 * period + 1)


def _down(x: Tensor, axis: int) -> Tensor:
    """The reverse of `_up`: the mirrored filter, at every other sample."""
    y = F.conv2d(x.flatten(0, 1)[:, None], _filter(x, axis), stride=_every_other(axis))
    return y.unflatten(0, x.shape[:2])[:, :, 0]


def _every_other(axis: int) -> tuple[int, int]:
    return (2, 1) if axis == 2 else (1, 2)


def _filter(x: Tensor, axis: int) -> Tensor:
    taps = torch.tensor(TAPS[::-1], dtype=x.dtype, device=x.device)
    return taps.view(1, 1, -1, 1) if axis == 2 else taps.view(1, 1, 1, -1)
