"""The frozen, pretrained feature networks that the projected discriminator looks through
(Sauer et al., "Projected GANs Converge Faster", arXiv 2111.01007).

EfficientNet-Lite0's four maps, taken where the image has been halved twice, three, four and five
times. It was trained on (x - 0.5) / 0.5 of images in [0, 1]: images in [-1, 1] go in as they are.

Use:

    features = build_features("lite0", resolution=64)
    maps = features(images)              # 24, 40, 112, 320 channels at 16, 8, 4, 2 px
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.errors import UserError
from fasttrain.networks.efficientnet_lite import (
    EfficientNetLite,
    fold_batch_norms,
    load_pretrained,
)

__all__ = ["Lite0Features", "build_features", "class_mean_features"]


class Lite0Features(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights: always in evaluation mode, never trained, its batch
    norms folded into the convolutions.

    Args:
        resolution: images with a smaller side are resized to it (bilinear); others are taken as
            they are. A multiple of 32, so that each map is twice as large as the next.
    Attributes:
        name: "lite0".
        channels: of the maps, from high to low resolution: (24, 40, 112, 320).
        resolution: as given.
        map_resolutions: sizes of the maps of an image of `resolution`; at 64: (16, 8, 4, 2).
    Raises:
        UserError: a resolution that is not a multiple of 32; no weights package.
    """

    name = "lite0"

    def __init__(self, resolution: int = 224) -> None:
        super().__init__()
        if resolution < 32 or resolution % 32:
            raise UserError(
                f"backbone lite0 with resolution {resolution}: set it to a multiple of 32"
            )
        network = load_pretrained("lite0")
        fold_batch_norms(network)
        # Two thirds of the default layout's time on a CPU, and what tensor cores read on a GPU.
        self.network: EfficientNetLite = channels_last(network)
        self.channels = network.stage_channels
        self.resolution = resolution
        self.map_resolutions = tuple(resolution // factor for factor in (4, 8, 16, 32))
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode whatever is asked."""
        return super().train(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [N, 1 or 3, H, W] in [-1, 1] -> the four maps, in the weights' dtype and in
        channels-last layout. Gradients of any order reach the images."""
        dtype = self.network._conv_stem.weight.dtype
        x = resize_up(images.to(dtype), self.resolution).expand(-1, 3, -1, -1)
        return self.network.stages(x.contiguous(memory_format=torch.channels_last))


def channels_last(network: nn.Module) -> Any:
    """The network, its convolution weights in channels-last layout (not in torch's type stubs)."""
    return cast(Any, network).to(memory_format=torch.channels_last)


def resize_up(images: Tensor, resolution: int) -> Tensor:
    """Bilinear (corners not aligned) to at least `resolution` on each side, else unchanged."""
    height, width = images.shape[-2:]
    if height >= resolution and width >= resolution:
        return images
    size = (max(height, resolution), max(width, resolution))
    return F.interpolate(images, size=size, mode="bilinear", align_corners=False)


def build_features(name: str, resolution: int = 224) -> Lite0Features:
    """The feature network of that name. Raises UserError for a name that is not known."""
    if name != Lite0Features.name:
        raise UserError(f"unknown backbone {name!r}: choose one of {Lite0Features.name}")
    return Lite0Features(resolution)


@torch.no_grad()
def class_mean_features(
    network: Lite0Features, batches: Iterable[tuple[Tensor, Tensor | None]], label_dim: int
) -> Tensor:
    """Mean features of each class, the start of the heads' class embeddings.

    batches: (images [n, 1 or 3, H, W] in [-1, 1], one-hot class_labels [n, label_dim]), read once.
    Returns [label_dim, channels of the last map] float32: the last map's mean over pixels and over
    the class's images; over all images for a class that has none. Raises UserError without images.
    """
    sums: Tensor | None = None
    counts: Tensor | None = None
    for images, class_labels in batches:
        if class_labels is None or class_labels.shape != (len(images), label_dim):
            given = "none" if class_labels is None else tuple(class_labels.shape)
            raise UserError(
                f"class labels of shape {given} for {len(images)} images: "
                f"they must be one-hot rows of {label_dim} classes"
            )
        pooled = network(images)[-1].mean(dim=(2, 3)).double()
        labels = class_labels.double()
        sums = labels.T @ pooled if sums is None else sums + labels.T @ pooled
        counts = labels.sum(0) if counts is None else counts + labels.sum(0)
    if sums is None or counts is None or counts.sum() == 0:
        raise UserError("no labelled images to take class means of: check the data set")
    means = sums / counts.clamp(min=1)[:, None]
    overall = sums.sum(0) / counts.sum()
    return torch.where((counts > 0)[:, None], means, overall).float()
