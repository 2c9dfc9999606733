"""EfficientNet-Lite2's pooled head: the features of evaluation that come with the installation."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain.evaluation.extractors import Extractor
from fasttrain.models.features.efficientnet_lite import (
    EfficientNetLite,
    fold_batch_norms,
    load_pretrained,
    weights_path,
)
from fasttrain.system.errors import UserError

__all__ = ["Lite2"]

RESOLUTION = 64
"""On halves of the 8x8 digits lite2 at 64 px was both the cheapest and the most sensitive: fd of
digits with noise of standard deviation 0.1 was 15 times the real floor, 11 times at 96 px and 8
times at 128 px."""


class Lite2(Extractor):
    """EfficientNet-Lite2's pooled head, on images resized to `resolution`."""

    def __init__(self, network: EfficientNetLite, resolution: int, protocol: dict[str, Any]):
        super().__init__(network, 1280, protocol)
        self.resolution = resolution

    @classmethod
    def load(cls, resolution: int | None, weights: Path | None) -> Lite2:
        resolution = RESOLUTION if resolution is None else resolution
        if resolution < 32:
            raise UserError(f"extractor lite2 with resolution {resolution}: set it to 32 or more")
        network = load_pretrained("lite2")
        fold_batch_norms(network)
        protocol = {
            "extractor": "lite2",
            "resolution": resolution,
            "weights": hashlib.sha256(weights_path("lite2").read_bytes()).hexdigest()[:12],
            "rounding": "uint8",
        }
        return cls(network, resolution, protocol)

    def features(self, levels: Tensor) -> Tensor:
        x = levels.div_(127.5).sub_(1)
        size = (self.resolution, self.resolution)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.network.pooled(x))
