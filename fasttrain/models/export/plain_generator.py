"""A one-step generator in plain torch, around a network's plain form (`Network.plain`): evaluated
once, or twice, from noise that depends on a seed alone.

    z = seed_latents([0, 1, 2], (3, 32, 32))
    images = one_step(network, z, one_hot([4, 4, 7], 10), sigma=80.0)      # [N, C, H, W] in [-1, 1]

What is below the line goes into exported pipelines as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# ---------------------------------------------------------------- copied into exports from here


DATA, EPS = 0.5, 0.002
"""Deviation of the images, and the noise level at which the generator gives its input back."""


def denoise(
    network: nn.Module,
    x: Tensor,
    level: float,
    labels: Tensor | None,
    data: float = DATA,
    eps: float = EPS,
) -> Tensor:
    """The generator G(x; level): the network between the scalings that it was trained in. These are
    float32, whatever the network's weights are."""
    dtype = next(network.parameters()).dtype
    sigma = x.new_full((x.shape[0], 1, 1, 1), level)
    c_in = (sigma**2 + data**2).rsqrt()
    hot = None if labels is None else labels.to(dtype)
    raw = network((c_in * x).to(dtype), (sigma.log() / 4).flatten(), hot).float()
    above = sigma - eps
    return data**2 / (above**2 + data**2) * x + above * data * c_in * raw


def one_step(
    network: nn.Module,
    z: Tensor,
    labels: Tensor | None = None,
    *,
    sigma: float = 80.0,
    sigma_mid: float | None = None,
    data: float = DATA,
    eps: float = EPS,
) -> Tensor:
    """Images [N, C, H, W] in [-1, 1] of latents z ~ N(0, 1) and one-hot labels [N, label_dim]; with
    a `sigma_mid` in two steps."""
    x = z * sigma
    images = denoise(network, x, sigma, labels, data, eps)
    if sigma_mid is None:
        return images
    middle = images + (sigma_mid / sigma) * (x - images)
    return denoise(network, middle, sigma_mid, labels, data, eps)


def seed_latents(seeds: Sequence[int], shape: Sequence[int]) -> Tensor:
    """Latents [N, *shape] that depend on each seed alone, as fasttrain's own: Philox 4x32-10
    (Salmon et al., SC 2011) over (block of four numbers, 0, seed), then Box and Muller."""
    count = math.prod(shape)
    index = torch.tensor(list(seeds), dtype=torch.int64)[:, None]
    block = torch.arange(-(-count // 4))[None]
    c0, c1, c2, c3 = torch.broadcast_tensors(block, index * 0, index & 0xFFFFFFFF, index >> 32)
    k0 = k1 = 0

    def product(word: Tensor, factor: int) -> tuple[Tensor, Tensor]:
        """High and low half; less 2^32 the factor is negative, and all fits into int64."""
        low = word * (factor - (1 << 32))
        return (low >> 32) + word, low & 0xFFFFFFFF

    for _ in range(10):
        high0, low0 = product(c0, 0xD2511F53)
        high1, low1 = product(c2, 0xCD9E8D57)
        c0, c1, c2, c3 = high1 ^ (c1 ^ k0), low1, high0 ^ (c3 ^ k1), low0
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    values = []
    for first, second in ((c0, c1), (c2, c3)):
        radius = first.float().mul(2.0**-32).add(2.0**-33).log().mul(-2).sqrt()
        angle = second.float().mul(2 * math.pi * 2.0**-32)
        values += [radius * angle.cos(), radius * angle.sin()]
    return torch.stack(values, -1).flatten(1)[:, :count].reshape(-1, *shape)


def one_hot(classes: Sequence[int], label_dim: int) -> Tensor:
    """Class numbers [N] -> float32 [N, label_dim]."""
    return F.one_hot(torch.tensor(list(classes), dtype=torch.int64), label_dim).float()
