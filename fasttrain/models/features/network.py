"""The frozen, pretrained feature networks of the projected discriminator
(Sauer et al., "Projected GANs Converge Faster", arXiv 2111.01007).

    name                    images normalised by     maps at a resolution of 224
    lite0                   0.5, 0.5                 24 @ 56, 40 @ 28, 112 @ 14, 320 @ 7
    vgg16_bn                ImageNet mean and std    128 @ 112, 256 @ 56, 512 @ 28, 512 @ 14
    deit_base_distilled     ImageNet mean and std    96 @ 56, 192 @ 28, 384 @ 14, 768 @ 7
    dino_vits16             ImageNet mean and std    384 @ 14, four times
    dinov2_vits14           ImageNet mean and std    384 @ 16, four times

Images smaller than the resolution are resized to it, others are not resized. Batch norms are folded
into the convolutions, and no weight has a gradient.

Use:

    features = build_features("lite0", resolution=64)
    maps = features(images)              # 24, 40, 112, 320 channels at 16, 8, 4, 2 px
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, Self, cast

import torch
from torch import Tensor, nn

from fasttrain.models.features.backbone import backbone
from fasttrain.models.features.weights import Published, find_weights, read_weights
from fasttrain.system.errors import UserError
from fasttrain.system.kept import Kept
from fasttrain_kernels import Normalisation, image_prep

__all__ = ["FeatureNetwork", "build_features", "load_weights"]


class FeatureNetwork(nn.Module):
    """A pretrained network: always in evaluation mode, never trained.

    Args:
        name: name of the network.
        network: module with `stage_channels` and `stages(normalised images) -> four maps`.
        resolution: images with a smaller side are resized to it (bilinear); others are not resized.
            A multiple of 32, so that each map is twice as large as the next.
    Attributes:
        name, resolution: the arguments.
        norm: normalisation of the images.
        crops: whether larger images are cropped to `resolution` at random.
        pyramid: whether each map is twice as large as the next, and a projector mixes them.
        channels: channels of the maps, from high to low resolution.
        map_resolutions: sizes of the maps of an image of `resolution`.
    Raises:
        UserError: a resolution that is not a multiple of 32.
    """

    def __init__(self, name: str, network: Any, resolution: int = 224) -> None:
        super().__init__()
        check_resolution(name, resolution)
        kind = backbone(name)
        if any(resolution % factor for factor in kind.factors):
            raise UserError(
                f"backbone {name} with resolution {resolution}: set it to a multiple of "
                f"{kind.factors[0]}, too, such as 224"
            )
        self.name = name
        self.norm: Normalisation = kind.norm
        self.crops, self.pyramid = kind.crops, len(set(kind.factors)) > 1
        # Two thirds of the default layout's time on a CPU, and the layout of a GPU's tensor cores.
        self.network = channels_last(network.requires_grad_(False))
        self.channels: tuple[int, ...] = network.stage_channels
        self.resolution = resolution
        self.map_resolutions = tuple(resolution // factor for factor in kind.factors)
        self._others = Kept[Any]()
        self.eval()

    def train(self, mode: bool = True) -> Self:
        """Stays in evaluation mode, whatever `mode`."""
        return super().train(False)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the weights."""
        return cast(torch.dtype, next(self.network.parameters()).dtype)

    def size(self, images: Tensor) -> tuple[int, int]:
        """Height and width to which images [N, C, H, W] are resized."""
        height, width = images.shape[-2:]
        if height >= self.resolution and width >= self.resolution:
            return height, width
        return max(height, self.resolution), max(width, self.resolution)

    def maps(self, prepared: Tensor) -> list[Tensor]:
        """The four maps of normalised images [N, 3, H, W] (see `image_prep`), in their dtype and in
        channels_last. Weights in another dtype are converted once, and again after a change."""
        return cast(list[Tensor], self._at(prepared.dtype).stages(prepared))

    def _at(self, dtype: torch.dtype) -> Any:
        if dtype == self.dtype:
            return self.network
        tensors = itertools.chain(self.network.parameters(), self.network.buffers())
        return self._others.get(tensors, dtype, lambda: copy.deepcopy(self.network).to(dtype))

    def forward(self, images: Tensor) -> list[Tensor]:
        """Images [N, 1 or 3, H, W] in [-1, 1] -> the four maps, in the weights' dtype. Gradients of
        any order reach the images."""
        size = self.size(images)
        (prepared,) = image_prep(images, size, [self.norm], dtype=self.dtype)
        return self.maps(prepared)

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> Self:
        """`.to()`, `.cuda()`, ...: also drops the cached weights of other dtypes."""
        self._others.clear()
        return super()._apply(fn, recurse)


def channels_last(network: nn.Module) -> Any:
    """The network, its convolution weights in channels-last layout (not in torch's type stubs)."""
    return cast(Any, network).to(memory_format=torch.channels_last)


def check_resolution(name: str, resolution: int) -> None:
    if resolution < 32 or resolution % 32:
        raise UserError(f"backbone {name} with resolution {resolution}: set it to a multiple of 32")


def build_features(
    name: str,
    resolution: int = 224,
    *,
    weights: Path | Literal["random"] | None = None,
    seed: int = 0,
) -> FeatureNetwork:
    """The feature network of that name with its pretrained weights.

    weights: a file or folder, see `find_weights`; "random" for untrained features, drawn from
        `seed` alone. Default for lite0: its package.
    seed: seed of random weights, and of deit_base_distilled's reassembly.

    Raises UserError for an unknown name, an invalid resolution, and weights that are missing or do
    not fit.
    """
    kind = backbone(name)
    check_resolution(name, resolution)
    network = kind.new(seed).eval()
    if weights != "random":
        load_weights(network, kind.published, weights, own=kind.own)
    kind.fold(network)
    return FeatureNetwork(name, network, resolution)


def load_weights(
    network: Any, published: Published, given: Path | None, *, own: str | None = None
) -> None:
    """Load pretrained weights into the network; all of its weights must exist and fit, but for
    those whose names begin with `own`."""
    path = find_weights(published, given)
    weights = read_weights(published, path)
    wanted = {
        key: value
        for key, value in (*network.named_parameters(), *network.named_buffers())
        if own is None or not key.startswith(own)
    }
    for key, value in wanted.items():
        if key not in weights and key.endswith("num_batches_tracked"):
            continue  # counters that evaluation does not use
        if key not in weights or weights[key].shape != value.shape:
            found = "missing" if key not in weights else f"{tuple(weights[key].shape)}"
            raise UserError(
                f"{path} does not fit {published.name}: {key} is {found} there, "
                f"{tuple(value.shape)} here"
            )
    network.load_state_dict({key: weights[key] for key in wanted if key in weights}, strict=False)
