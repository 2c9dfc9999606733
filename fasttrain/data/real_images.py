"""The images of a data set in sequence, for pictures and evaluations: in the order of its seed,
each once an epoch. The first ones are a sample of the set: conversion has shuffled shards, the tars
of others are read at random (`ScatteredOrder`), a mixture has its weights.

    images = RealImages.of(settings.data)
    batch = images.take(64).to(device)           # the next 64 images
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fasttrain.data.batch import Batch
from fasttrain.data.locate import storage_of
from fasttrain.data.storage import Storage
from fasttrain.data.stream import ImageStream
from fasttrain.system.errors import UserError
from fasttrain_data import DataError

if TYPE_CHECKING:
    from fasttrain.settings import DataSettings, NetworkSettings, RunSettings

__all__ = ["RealImages"]


class RealImages:
    """One logical stream of a shard set, read on demand.

    Args:
        network: the images and classes must be those of its input.
        reader_timeout: seconds to wait for an image.

    Raises UserError as `ImageStream` does.
    """

    def __init__(
        self,
        data: Path | Storage,
        *,
        seed: int = 0,
        max_skipped: int = 0,
        network: NetworkSettings | None = None,
        reader_timeout: float = 600,
    ) -> None:
        self.stream = ImageStream(
            data,
            batch=1,
            streams=1,
            seed=seed,
            window=None,
            resolution=None if network is None else network.img_resolution,
            channels=None if network is None else network.img_channels,
            label_dim=None if network is None else network.label_dim,
            max_skipped=max_skipped,
            reader_timeout=reader_timeout,
        )
        self.index = self.stream.manifest
        try:
            self.index.check_images(self.stream.storage)
        except DataError as error:
            raise UserError(str(error)) from None

    @classmethod
    def of(
        cls,
        data: DataSettings,
        *,
        seed: int = 0,
        network: NetworkSettings | None = None,
        sized_for: NetworkSettings | None = None,
        trust_urls: bool = True,
    ) -> RealImages:
        """The images of a run's data set.

        sized_for: the network whose input decides the size of images that have any; `network` by
            default. It is compared with nothing else.
        trust_urls: see `storage_of`.
        """
        return cls(
            storage_of(data, network or sized_for, trust_urls=trust_urls),
            seed=seed,
            max_skipped=data.max_skipped,
            network=network,
            reader_timeout=data.reader_timeout,
        )

    @classmethod
    def of_run(
        cls,
        settings: RunSettings,
        *,
        seed: int = 0,
        compared: bool = False,
        trust_urls: bool = True,
    ) -> RealImages:
        """The images of a run's data set, or those that its latents are of.

        compared: the images must be those of the network's input, where that is images.
        """
        if settings.latents is not None:
            return cls.of(settings.pictures, seed=seed, trust_urls=trust_urls)
        return cls.of(
            settings.data,
            seed=seed,
            network=settings.network if compared else None,
            sized_for=settings.network,
            trust_urls=trust_urls,
        )

    def take(self, count: int) -> Batch:
        """The next `count` images, as bytes on the CPU."""
        each = [next(self.stream) for _ in range(count)]
        labels = [one.class_labels for one in each if one.class_labels is not None]
        return Batch(
            images=torch.cat([one.images for one in each]),
            class_labels=torch.cat(labels) if labels else None,
            index=torch.cat([one.index for one in each]),
        )
