"""Checks that a set, the settings and the number of processes fit; one line for each mistake."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fasttrain.system.errors import UserError
from fasttrain_data import Index
from fasttrain_data.tar_index import TarView

__all__ = [
    "check_division",
    "check_expectations",
    "class_names",
    "described",
    "images_per_shard",
    "values_of",
    "width_of_labels",
]

MOST_NAMES = 10_000
"""Classes whose names a checkpoint holds."""


def check_division(
    batch: int, streams: int | None, seed: int, rank: int, world_size: int, window: int | None
) -> None:
    for name, value, least in (
        ("batch", batch, 1),
        ("streams", 1 if streams is None else streams, 1),
        ("seed", seed, 0),
        ("world_size", world_size, 1),
        ("window", 1 if window is None else window, 1),
    ):
        if value < least:
            raise UserError(f"{name} is {value}: it must be at least {least}")
    if streams is not None and batch % streams:
        raise UserError(f"batch {batch} does not divide into {streams} streams of equal size")
    if batch % world_size:
        sizes = ", ".join(str(n) for n in range(1, batch + 1) if batch % n == 0)
        raise UserError(
            f"batch {batch} does not divide over {world_size} processes: the number of processes "
            f"must divide batch, so use one of {sizes}"
        )
    if not 0 <= rank < world_size:
        raise UserError(f"rank {rank} is not in 0 to {world_size - 1}")


def check_expectations(
    path: str,
    index: Index,
    shards: int,
    resolution: int | None,
    channels: int | None,
    streams: int | None,
    resampled: bool,
) -> None:
    if resolution is not None and resolution != index.resolution:
        remedy = f"convert again with --resolution {resolution} --force"
        if isinstance(index, TarView):
            remedy = "leave data.resolution out"
        raise UserError(
            f"the images of {path} are {index.resolution}x{index.resolution}, the settings say "
            f"{resolution}x{resolution}: {remedy}"
        )
    if channels is not None and channels != index.channels:
        raise UserError(
            f"the images of {path} have {index.channels} channels, the settings say {channels}: "
            f"convert again with --channels {channels} --force"
        )
    if streams is not None and shards < streams and not resampled:
        if index.images < streams:
            raise UserError(f"{path} has {index.images} images, fewer than the {streams} streams")
        raise UserError(
            f"{path} has {shards} shards, fewer than the {streams} streams: "
            f"leave data.streams out, or convert again with --images-per-shard "
            f"{images_per_shard(index.images, streams)} --force"
        )


def images_per_shard(images: int, streams: int) -> int:
    """The largest number up to 1000 with which each stream has equally many shards, if there is
    one: streams with unequal numbers of shards start their epochs at different times."""
    most = min(1000, images // streams)
    even = (n for n in range(most, 0, -1) if -(-images // n) % streams == 0)
    return next(even, most)


def class_names(index: Index, label_dim: int) -> list[str]:
    """Names of the classes in the order of the labels; none without labels, or of too many."""
    return [info.name for info in index.classes[: label_dim if label_dim <= MOST_NAMES else 0]]


def described(index: Index, label_dim: int) -> dict[str, Any]:
    """What a checkpoint holds of its data, for who looks at its model later."""
    about: dict[str, Any] = {"classes": class_names(index, label_dim)}
    return about if index.latents is None else about | {"latents": index.latents.model_dump()}


def values_of(pixels: Tensor, index: Index) -> Tensor:
    """The numbers of decoded records: uint8, or of latents the float16 whose bytes they are."""
    return pixels if index.latents is None else pixels.view(torch.float16)


def width_of_labels(path: str, index: Index, expected: int | None) -> int:
    """Width of the one-hot labels: the number of classes; 0 with one class or without labels."""
    width = len(index.classes) if len(index.classes) > 1 else 0
    if expected is None:
        return width
    if expected not in (0, width):
        raise UserError(
            f"{path} has {len(index.classes)} classes, the settings say label_dim {expected}: "
            f"set it to {width}" + (", or to 0 to train without labels" if width else "")
        )
    return expected
