"""The pooled maps of EfficientNet-Lite0, the discriminator's smallest backbone: a judge of the
Frechet objective. Its distances say nothing of a generator that was trained on its features."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from torch import Tensor

from fasttrain.evaluation.extractors import Extractor
from fasttrain.models.features.efficientnet_lite import weights_path
from fasttrain.models.features.network import build_features

__all__ = ["Lite0"]

RESOLUTION = 64


class Lite0(Extractor):
    """Means over the places of each of the four maps, side by side: 24 + 40 + 112 + 320."""

    @classmethod
    def load(cls, resolution: int | None, weights: Path | None) -> Lite0:
        resolution = RESOLUTION if resolution is None else resolution
        network = build_features("lite0", resolution)
        protocol = {
            "extractor": "lite0",
            "resolution": resolution,
            "weights": hashlib.sha256(weights_path("lite0").read_bytes()).hexdigest()[:12],
            "rounding": "uint8",
        }
        return cls(network, sum(network.channels), protocol)

    def features(self, levels: Tensor) -> Tensor:
        maps = self.network(levels.div_(127.5).sub_(1))
        return torch.cat([x.mean((2, 3)) for x in maps], 1).float()
