"""The training image nearest to a generated one: by the distance of pixels, over all of them.

    images = TrainingImages(settings.data, settings.network)      # checks that they are there
    images.nearest(pixels)      # {"pixels": base64, "label": 3, "distance": 21.4, "count": 60000}

They are read when the first image is asked for, and then held as bytes.
"""

from __future__ import annotations

import base64
import math
import threading
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from fasttrain.data import RealImages
from fasttrain.data.batch import Batch
from fasttrain.settings import DataSettings, NetworkSettings
from fasttrain.system.errors import UserError

__all__ = ["TrainingImages"]

MOST = 4_000_000_000
"""Bytes of all images."""
CHUNK = 4096


class TrainingImages:
    """All images of a data set. Raises UserError when they are not there, of another size than the
    network's, or too many to hold.

    trust_urls: see `storage_of`.
    """

    def __init__(
        self, data: DataSettings, network: NetworkSettings, *, trust_urls: bool = False
    ) -> None:
        self.bytes = network.img_channels * network.img_resolution**2
        self.source = RealImages.of(data, network=network, trust_urls=trust_urls)
        self.count = self.source.index.images
        if self.count * self.bytes > MOST:
            raise UserError(
                f"the {self.count:,} training images take more than {MOST / 1e9:.0f} GB"
            )
        self.lock = threading.Lock()

    @cached_property
    def all(self) -> Batch:
        return self.source.take(self.count)

    def nearest(self, pixels: bytes) -> dict[str, Any]:
        """The nearest image's pixels, class and distance (root mean square, in grey levels).

        pixels: channel by channel, as the page draws them.
        """
        with self.lock:
            known = self.all
        image = torch.frombuffer(bytearray(pixels), dtype=torch.uint8).float()
        distances = torch.cat([_squares(part, image) for part in known.images.split(CHUNK)])
        best = int(distances.argmin())
        found = known.images[best].flatten()
        labels = known.class_labels
        return {
            "pixels": base64.b64encode(found.numpy().tobytes()).decode(),
            "label": None if labels is None else int(labels[best].argmax()),
            "distance": math.sqrt(float(distances[best]) / self.bytes),
            "count": self.count,
        }


def _squares(images: Tensor, image: Tensor) -> Tensor:
    return (images.flatten(1).float() - image).square().sum(1)
