"""DINO's ViT-S/16 (Caron et al., arXiv 2104.14294) as an extractor: features of a network that was
trained without labels, for generators whose discriminator's features know ImageNet's. Its weights
are the file of the discriminator's backbone of that name, which the user downloads once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from fasttrain.evaluation.extractors import Extractor
from fasttrain.models.features.dino import DINO_VITS16, WIDTH, ClassToken
from fasttrain.models.features.network import load_weights
from fasttrain.models.features.weights import find_weights
from fasttrain.system.errors import UserError
from fasttrain.system.files import sha256
from fasttrain_kernels import IMAGENET, image_prep

__all__ = ["Dino"]

RESOLUTION, PATCH = 224, 16
PUBLISHED = replace(DINO_VITS16.published, setting="with --weights (evaluate.weights in a recipe)")


class Dino(Extractor):
    """The class token behind the last norm, on images resized (bilinear) to `resolution`; fd uses
    all of its 384 dimensions."""

    components = None
    published = PUBLISHED

    @classmethod
    def load(cls, resolution: int | None, weights: Path | None) -> Dino:
        resolution = RESOLUTION if resolution is None else resolution
        if resolution % PATCH or resolution <= 0:
            raise UserError(
                f"extractor dino_vits16 with resolution {resolution}: set it to a multiple of "
                f"{PATCH}, such as {RESOLUTION}"
            )
        with torch.device("cpu"):
            network = ClassToken(patch=PATCH, grid=RESOLUTION // PATCH)
        path = find_weights(PUBLISHED, weights)
        load_weights(network, PUBLISHED, path)
        protocol = {
            "extractor": "dino_vits16",
            "resolution": resolution,
            "weights": sha256(path)[:12],
            "rounding": "uint8",
        }
        extractor = cls(network, WIDTH, protocol)
        extractor.resolution = resolution
        return extractor

    resolution: int

    def features(self, levels: Tensor) -> Tensor:
        size = (self.resolution, self.resolution)
        (x,) = image_prep(levels.div_(127.5).sub_(1), size, [IMAGENET], dtype=torch.float32)
        return cast(Tensor, self.network.pooled(x))
