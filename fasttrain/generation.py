"""Images by seed: image i of a model is a function of i alone; another batch size changes no more
than the rounding of its last bits.

images = generate(one_step, network, range(64))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fasttrain.draws import sample_latents

__all__ = ["Sampler", "between", "class_labels_of", "generate"]

Sampler = Callable[..., torch.Tensor]
"""(network, latents, class_labels, **options) -> images, as in `fasttrain.sampling`."""


def class_labels_of(
    seeds: torch.Tensor, label_dim: int, label: int | None = None
) -> torch.Tensor | None:
    """One-hot float32 [N, label_dim]: class `label`, or the classes in turn by seed when it is
    None; None for an unconditional network (label_dim 0)."""
    if label_dim == 0:
        return None
    index = seeds % label_dim if label is None else torch.full_like(seeds, label)
    return nn.functional.one_hot(index, label_dim).float()


def between(
    first: torch.Tensor, second: torch.Tensor, at: torch.Tensor, shape: Sequence[int]
) -> torch.Tensor:
    """Latents [N, *shape] a share `at` (float64 [N], 0 to 1) of the way from seed to seed, along
    the arc between their directions: latents in between are as long as others, so as likely.

        z = (sin((1 - t) w) z_1 + sin(t w) z_2) / sin w,    w the angle between z_1 and z_2
    """
    one = sample_latents(first, shape)
    moved = at > 0
    if not moved.any():
        return one
    z1, z2 = one[moved].double().flatten(1), sample_latents(second[moved], shape).flatten(1)
    cosine = torch.cosine_similarity(z1, z2.double(), dim=1).clamp(-1, 1)
    angle, t = cosine.acos(), at[moved]
    weights = torch.stack([((1 - t) * angle).sin(), (t * angle).sin()], 1) / angle.sin()[:, None]
    one[moved] = (weights[:, :1] * z1 + weights[:, 1:] * z2).float().unflatten(1, tuple(shape))
    return one


@torch.no_grad()
def generate(
    sampler: Sampler,
    network: Any,
    seeds: Sequence[int],
    *,
    label: int | None = None,
    batch: int = 256,
    **options: Any,
) -> torch.Tensor:
    """Images [len(seeds), C, H, W] in [-1, 1], float32, on the CPU.

    network: a preconditioned network of `fasttrain.networks`; options go to the sampler.
    """
    device = next(network.parameters()).device
    shape = (network.img_channels, network.img_resolution, network.img_resolution)
    images = []
    for part in torch.tensor(list(seeds), dtype=torch.int64, device=device).split(batch):
        labels = class_labels_of(part, network.label_dim, label)
        images.append(sampler(network, sample_latents(part, shape), labels, **options).cpu())
    return torch.cat(images)
