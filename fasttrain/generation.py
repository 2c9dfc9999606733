"""Images by seed: image i of a model is a function of i alone, whatever the batch size.

images = generate(one_step, network, range(64))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn

from fasttrain.draws import sample_latents

__all__ = ["Sampler", "class_labels_of", "generate"]

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
