"""The images of a data set, one after the other, to look at: in the order of its seed, each once an
epoch.

    images = RealImages(storage_of(settings.data), max_skipped=settings.data.max_skipped)
    batch = images.take(64).to(device)           # the next 64, whatever was taken before
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import torch

from fasttrain.data.batch import Batch
from fasttrain.data.image_stream import ImageStream
from fasttrain.data.storage import Storage

if TYPE_CHECKING:
    from fasttrain.settings import NetworkSettings

__all__ = ["RealImages"]


class RealImages:
    """One logical stream of a shard set, read by whoever asks.

    Args:
        network: the images and classes must be those of its input.

    Raises UserError as `ImageStream` does.
    """

    def __init__(
        self,
        data: Path | Storage,
        *,
        seed: int = 0,
        max_skipped: int = 0,
        network: NetworkSettings | None = None,
    ) -> None:
        self.stream = ImageStream(
            data,
            batch=1,
            streams=1,
            seed=seed,
            resolution=None if network is None else network.img_resolution,
            channels=None if network is None else network.img_channels,
            label_dim=None if network is None else network.label_dim,
            max_skipped=max_skipped,
        )
        self.index = self.stream.manifest

    def take(self, count: int) -> Batch:
        """The next `count` images, as bytes on the CPU."""
        each = [next(self.stream) for _ in range(count)]
        labels = [one.class_labels for one in each if one.class_labels is not None]
        return Batch(
            images=torch.cat([one.images for one in each]),
            class_labels=torch.cat(labels) if labels else None,
            index=torch.cat([one.index for one in each]),
        )
