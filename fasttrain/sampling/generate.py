"""Images by seed: image i of a model is a function of i alone; another batch size changes only the
rounding of its last bits.

    images = generate(Sampler.of(info), network, range(64))
    for images in draw(sampler, network, tiles, batch=64): ...      # also between two seeds
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fasttrain.sampling.draws import churn_noise, sample_latents
from fasttrain.sampling.sampler import Sampler
from fasttrain.system.errors import UserError
from fasttrain.system.switches import tf32

__all__ = ["Tile", "between", "check_shown", "class_labels_of", "draw", "generate"]


@dataclass(frozen=True)
class Tile:
    """One image at the fraction `at` of the way from seed `first` to seed `second`."""

    name: str
    first: int
    second: int
    at: float = 0.0
    label: int = 0


def class_labels_of(seeds: Tensor, label_dim: int) -> Tensor | None:
    """One-hot float32 [N, label_dim], the classes in turn by seed; None for an unconditional
    network (label_dim 0)."""
    return nn.functional.one_hot(seeds % label_dim, label_dim).float() if label_dim else None


def check_shown(network: Any) -> None:
    """Raise UserError if the output of a network cannot be shown as an image: it has neither one
    channel (grey) nor three (red, green, blue), and there is no decoder."""
    if network.decoder is None and network.img_channels not in (1, 3):
        raise UserError(
            f"the model makes {network.img_channels} channels, and an image has 1 or 3: if these "
            f"are latents, import it again with scaling_factor=VALUE, and name their autoencoder"
        )


def between(
    first: Tensor,
    second: Tensor,
    at: Tensor,
    draw: Callable[[Tensor], Tensor],
) -> Tensor:
    """Draws at a fraction `at` (float64 [N], 0 to 1) of the way from seed to seed, along the arc
    between their directions, so that latents in between have the usual norm.

        z = (sin((1 - t) w) z_1 + sin(t w) z_2) / sin w,    w the angle between z_1 and z_2
    """
    one = draw(first)
    moved = at > 0
    if not moved.any():
        return one
    z1, z2 = one[moved].double().flatten(1), draw(second[moved]).flatten(1)
    cosine = torch.cosine_similarity(z1, z2.double(), dim=1).clamp(-1, 1)
    angle, t = cosine.acos(), at[moved]
    weights = torch.stack([((1 - t) * angle).sin(), (t * angle).sin()], 1) / angle.sin()[:, None]
    one[moved] = (weights[:, :1] * z1 + weights[:, 1:] * z2).float().unflatten(1, one.shape[1:])
    return one


@torch.no_grad()
def draw(
    sampler: Sampler, network: Any, tiles: Sequence[Tile], batch: int, *, decoded: bool = True
) -> Iterator[Tensor]:
    """Images in [-1, 1], float32, on the CPU, in batches; the last one may be smaller. Those of a
    network of latents go through its decoder, unless they are wanted as they are."""
    if decoded:
        check_shown(network)
    device = next(network.parameters()).device
    shape = (network.img_channels, network.img_resolution, network.img_resolution)
    for start in range(0, len(tiles), batch):
        part = tiles[start : start + batch]
        first, second, label = (
            torch.tensor(numbers, dtype=torch.int64, device=device)
            for numbers in zip(*((t.first, t.second, t.label) for t in part), strict=True)
        )
        at = torch.tensor([tile.at for tile in part], dtype=torch.float64, device=device)
        along = partial(between, first, second, at)

        def noise(step: int, along: Callable[..., Tensor] = along) -> Tensor:
            return along(partial(churn_noise, step=step, shape=shape))

        classes = network.label_dim
        labels = nn.functional.one_hot(label, classes).float() if classes else None
        with tf32(False):  # as where models are evaluated: a seed is an image
            images = sampler(network, along(partial(sample_latents, shape=shape)), labels, noise)
            if decoded and network.decoder is not None:
                images = network.decoder(images)
        yield images.cpu()


def generate(
    sampler: Sampler,
    network: Any,
    seeds: Sequence[int],
    *,
    label: int | None = None,
    batch: int = 256,
    decoded: bool = True,
) -> Tensor:
    """Images [len(seeds), C, H, W] in [-1, 1], float32, on the CPU.

    network: a preconditioned network of `fasttrain.models.networks`; label: the class of all
    images; default: the classes in turn by seed; decoded: see `draw`.
    """
    each = max(1, network.label_dim)
    tiles = [Tile("", s, s, label=s % each if label is None else label) for s in seeds]
    return torch.cat(list(draw(sampler, network, tiles, batch, decoded=decoded)))
