"""Networks that turn images into the features whose distributions evaluation compares.

- `lite2` is EfficientNet-Lite2's pooled head, 1280 features an image; its weights come with the
  installation. It is never a discriminator's network, because a generator could have been optimised
  for its features. Images are resized bilinearly, corners not aligned, no antialias.
- `inception` is the network of published FIDs, 2048 features an image, with its own resize and its
  own classes, for the inception score; its weights are a file that the user downloads once.

Images are rounded to 256 levels, as in a saved file.

Use:

    extractor = load_extractor("lite2")
    features = extract(extractor, batches)       # [N, 1280] float32
    extractor.protocol                           # what the metrics depend on, to store beside them
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.models.features.efficientnet_lite import (
    EfficientNetLite,
    fold_batch_norms,
    load_pretrained,
    weights_path,
)
from fasttrain.models.features.inception import FEATURES, SIDE, InceptionV3
from fasttrain.models.features.network import load
from fasttrain.models.features.weights import PUBLISHED, find_weights
from fasttrain.system.errors import UserError
from fasttrain.system.files import sha256

__all__ = ["COMPONENTS", "EXTRACTORS", "Extractor", "check_extractor", "extract", "load_extractor"]

EXTRACTORS = {"lite2": 64, "inception": SIDE}
"""Known extractors and the resolution of each. On halves of the 8x8 digits lite2 at 64 px was both
the cheapest and the most sensitive: fd of digits with noise of standard deviation 0.1 was 15 times
the real floor, 11 times at 96 px and 8 times at 128 px."""
COMPONENTS: dict[str, int | None] = {"lite2": 64, "inception": None}
"""Leading principal components that `fd` uses; None: all dimensions, as in published FIDs."""


class Extractor(nn.Module, ABC):
    """A frozen network with its preprocessing; in evaluation mode, without gradients.

    Attributes:
        protocol: name, resolution, first 12 digits of the weights' SHA-256, rounding.
        width: number of features.
        classes: number of classes of its classifier, 0 without one.
    """

    classes = 0

    def __init__(self, network: nn.Module, width: int, protocol: dict[str, Any]) -> None:
        super().__init__()
        # Two thirds of the default layout's time on a CPU, and the layout of a GPU's tensor cores.
        self.network: Any = cast(Any, network).to(memory_format=torch.channels_last)
        self.width, self.protocol = width, protocol
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Images [N, 1 or 3, H, W] in [-1, 1] of any size -> features [N, width] float32."""
        return self.features((images.float() + 1).mul_(127.5).round_().clamp_(0, 255))

    @abstractmethod
    def features(self, levels: Tensor) -> Tensor:
        """Features of images with the values 0, 1, ..., 255, which it may overwrite."""

    def logits(self, features: Tensor) -> Tensor:
        """Logits [N, classes] of features. Raises UserError for an extractor without classes."""
        raise UserError(f"{self.protocol['extractor']} does not classify: it has no class scores")


class Lite2(Extractor):
    """EfficientNet-Lite2's pooled head, on images resized to `resolution`."""

    def __init__(self, network: EfficientNetLite, resolution: int, protocol: dict[str, Any]):
        super().__init__(network, 1280, protocol)
        self.resolution = resolution

    def features(self, levels: Tensor) -> Tensor:
        x = levels.div_(127.5).sub_(1)
        size = (self.resolution, self.resolution)
        if x.shape[-2:] != size:
            x = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
        x = x.expand(-1, 3, -1, -1).contiguous(memory_format=torch.channels_last)
        return cast(Tensor, self.network.pooled(x))


class Inception(Extractor):
    """FID's network, which does its own resize; its logits leave out the bias, as published
    inception scores do."""

    classes = 1008

    def features(self, levels: Tensor) -> Tensor:
        return cast(Tensor, self.network.pooled(levels.expand(-1, 3, -1, -1)))

    @torch.no_grad()
    def logits(self, features: Tensor) -> Tensor:
        return cast(Tensor, self.network.logits(features))


def check_extractor(name: str, weights: Path | None = None) -> None:
    """Raise UserError for an unknown name, and for missing weights."""
    if name not in EXTRACTORS:
        raise UserError(f"unknown extractor {name!r}: choose one of {', '.join(EXTRACTORS)}")
    if name == "inception":
        find_weights(name, weights)
    elif weights is not None:
        raise UserError(f"extractor {name} has its own weights: remove --weights")


def load_extractor(
    name: str = "lite2", resolution: int | None = None, weights: Path | None = None
) -> Extractor:
    """The extractor of that name, on the CPU.

    resolution: replaces lite2's default.
    weights: inception's file or its folder; default: the folder that FASTTRAIN_WEIGHTS names.

    Raises UserError for an unknown name, an impossible resolution, and weights that are missing,
    damaged or of another network.
    """
    check_extractor(name, weights)
    if name == "inception":
        if resolution not in (None, SIDE):
            raise UserError(
                f"extractor inception resizes images to {SIDE} itself: remove the resolution"
            )
        return _inception(find_weights(name, weights))
    resolution = EXTRACTORS[name] if resolution is None else resolution
    if resolution < 32:
        raise UserError(f"extractor {name} with resolution {resolution}: set it to 32 or more")
    network = load_pretrained("lite2")
    fold_batch_norms(network)
    protocol = {
        "extractor": name,
        "resolution": resolution,
        "weights": hashlib.sha256(weights_path("lite2").read_bytes()).hexdigest()[:12],
        "rounding": "uint8",
    }
    return Lite2(network, resolution, protocol)


def _inception(path: Path) -> Extractor:
    with torch.device("cpu"):
        network = InceptionV3().eval().requires_grad_(False)
    load(network, "inception", path)
    network.fold_batch_norms()
    digest = sha256(path)
    protocol = {
        "extractor": "inception",
        "resolution": SIDE,
        "resize": "TensorFlow 1, bilinear",
        "weights": digest[:12],
        "published": digest.startswith(PUBLISHED["inception"].sha256),
        "rounding": "uint8",
    }
    return Inception(network, FEATURES, protocol)


def extract(extractor: Extractor, batches: Iterable[Tensor]) -> Tensor:
    """Features [N, F] float32, on the CPU, of all images of the batches, each [n, C, H, W].

    Raises UserError when there are none.
    """
    parts = [extractor(images).cpu() for images in batches]
    if not parts:
        raise UserError("no images for the extractor: check the data set")
    return torch.cat(parts)
