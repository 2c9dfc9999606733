"""The network of published FIDs, with its own resize and its own classes, for the inception score;
its weights are a file that the user downloads once."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import torch
from torch import Tensor

from fasttrain.evaluation.extractors import Extractor
from fasttrain.models.features.inception import FEATURES, PUBLISHED, SIDE, InceptionV3
from fasttrain.models.features.network import load_weights
from fasttrain.models.features.weights import find_weights
from fasttrain.system.errors import UserError
from fasttrain.system.files import sha256

__all__ = ["Inception"]


class Inception(Extractor):
    """FID's network, which does its own resize; its logits leave out the bias, as published
    inception scores do."""

    classes = 1008
    components = None
    published = PUBLISHED
    unnamed_statistics = True

    @classmethod
    def load(cls, resolution: int | None, weights: Path | None) -> Inception:
        if resolution not in (None, SIDE):
            raise UserError(
                f"extractor inception resizes images to {SIDE} itself: remove the resolution"
            )
        with torch.device("cpu"):
            network = InceptionV3().eval().requires_grad_(False)
        path = find_weights(PUBLISHED, weights)
        load_weights(network, PUBLISHED, path)
        network.fold_batch_norms()
        digest = sha256(path)
        protocol = {
            "extractor": "inception",
            "resolution": SIDE,
            "resize": "TensorFlow 1, bilinear",
            "weights": digest[:12],
            "published": digest.startswith(PUBLISHED.sha256),
            "rounding": "uint8",
        }
        return cls(network, FEATURES, protocol)

    def features(self, levels: Tensor) -> Tensor:
        return cast(Tensor, self.network.pooled(levels.expand(-1, 3, -1, -1)))

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.network.logits(features))
