"""Networks that turn images into the features whose distributions evaluation compares. The registry
in `fasttrain.settings.registry` names them:

- `lite2` is EfficientNet-Lite2's pooled head, 1280 features an image; its weights come with the
  installation. It is never a discriminator's network, because a generator could have been optimised
  for its features. Images are resized bilinearly, corners not aligned, no antialias.
- `inception` is the network of published FIDs, 2048 features an image, with its own resize and its
  own classes, for the inception score; its weights are a file that the user downloads once.
- `dino_vits16` is DINO's vision transformer, 384 features an image, which was trained without
  labels; its weights are a file to download, too.

Images are rounded to 256 levels, as in a saved file.

Use:

    extractor = load_extractor("lite2")
    features = extract(extractor, batches)       # [N, 1280] float32
    extractor.protocol                           # what the metrics depend on, to store beside them
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from fasttrain.models.features.weights import Published, find_weights
from fasttrain.settings.registry import EXTRACTORS, load
from fasttrain.system.errors import UserError

__all__ = ["Extractor", "check_extractor", "extract", "extractor_class", "load_extractor"]


class Extractor(nn.Module, ABC):
    """A frozen network with its preprocessing; in evaluation mode, without gradients.

    Attributes:
        protocol: name, resolution, first 12 digits of the weights' SHA-256, rounding.
        width: number of features.
        classes: number of classes of its classifier, 0 without one.
        components: leading principal components that `fd` uses; None: all dimensions, as in
            published FIDs.
        published: the file of its weights, where users download it.
        unnamed_statistics: whether files of its statistics are published that do not name it.
    """

    classes = 0
    components: int | None = 64
    published: Published | None = None
    unnamed_statistics = False

    def __init__(self, network: nn.Module, width: int, protocol: dict[str, Any]) -> None:
        super().__init__()
        # Two thirds of the default layout's time on a CPU, and the layout of a GPU's tensor cores.
        self.network: Any = cast(Any, network).to(memory_format=torch.channels_last)
        self.width, self.protocol = width, protocol
        self.eval().requires_grad_(False)

    @classmethod
    @abstractmethod
    def load(cls, resolution: int | None, weights: Path | None) -> Extractor:
        """The extractor with its weights, on the CPU; see `load_extractor`. Raises UserError."""

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


def extractor_class(name: str) -> type[Extractor]:
    """Raises UserError for a name that is not in the registry."""
    if name not in EXTRACTORS:
        raise UserError(f"unknown extractor {name!r}: choose one of {', '.join(EXTRACTORS)}")
    found: type[Extractor] = load(EXTRACTORS[name].place)
    return found


def check_extractor(name: str, weights: Path | None = None) -> None:
    """Raise UserError for an unknown name, and for missing weights."""
    published = extractor_class(name).published
    if published is not None:
        find_weights(published, weights)
    elif weights is not None:
        raise UserError(f"extractor {name} has its own weights: name no others")


def load_extractor(
    name: str = "lite2", resolution: int | None = None, weights: Path | None = None
) -> Extractor:
    """The extractor of that name, on the CPU.

    resolution: replaces its default.
    weights: a downloaded file or its folder; default: the folder that FASTTRAIN_WEIGHTS names.

    Raises UserError for an unknown name, a resolution that it cannot have, and weights that are
    missing, damaged or of another network.
    """
    check_extractor(name, weights)
    return extractor_class(name).load(resolution, weights)


def extract(extractor: Extractor, batches: Iterable[Tensor]) -> Tensor:
    """Features [N, F] float32, on the CPU, of all images of the batches, each [n, C, H, W].

    Raises UserError when there are none.
    """
    parts = [extractor(images).cpu() for images in batches]
    if not parts:
        raise UserError("no images for the extractor: check the data set")
    return torch.cat(parts)
