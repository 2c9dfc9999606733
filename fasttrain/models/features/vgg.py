"""VGG16 with batch norm (Simonyan and Zisserman, arXiv 1409.1556), up to its last convolution: a
feature network of the projected discriminator.

    conv 3x3 -> batch norm -> ReLU, twice or three times, then a 2x2 max pooling; five such stages.

Parameters have torchvision's names (`features.0.weight`, ...), so its weights file loads.

    network = VGG16BN()
    network.load_state_dict(weights, strict=False)
    network.fold_batch_norms()                   # the same numbers, fewer operations
    maps = network.stages(images)                # normalised images [N, 3, H, W]
"""

from __future__ import annotations

from typing import Any, cast

import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.models.features.backbone import Backbone
from fasttrain.models.features.folding import folded
from fasttrain.models.features.weights import Published
from fasttrain.models.networks.frozen_conv import frozen_conv2d
from fasttrain_kernels import IMAGENET

__all__ = ["BACKBONE", "VGG16BN"]

STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


class VGG16BN(nn.Module):
    """The convolutional part without the last pooling and the classifier.

    Attributes:
        stage_channels: channels of the four maps of `stages`.
    """

    stage_channels = (128, 256, 512, 512)

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for widths in STAGES:
            for width in widths:
                conv = nn.Conv2d(channels, width, 3, padding=1)
                nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
                layers += [conv, nn.BatchNorm2d(width), nn.ReLU()]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers[:-1])

    def fold_batch_norms(self) -> None:
        """Put each batch norm into the convolution before it, in place (evaluation mode only)."""
        for place, layer in enumerate(self.features):
            if isinstance(layer, nn.BatchNorm2d):
                conv = cast(nn.Conv2d, self.features[place - 1])
                self.features[place - 1] = folded(conv, layer)
                self.features[place] = nn.Identity()

    def stages(self, x: Tensor) -> list[Tensor]:
        """Maps at 1/2, 1/4, 1/8 and 1/16 of the image, each after the last ReLU of its resolution.
        Differentiable twice."""
        maps: list[Tensor] = []
        for layer in self.features:
            if isinstance(layer, nn.MaxPool2d):
                maps.append(x)
                x = F.max_pool2d(x, 2)
            elif isinstance(layer, nn.Conv2d):
                x = self._convolved(layer, x)
            elif not (self._folded and isinstance(layer, nn.ReLU)):
                x = layer(x)
        return [*maps[1:], x]

    @property
    def _folded(self) -> bool:
        return isinstance(self.features[1], nn.Identity)

    def _convolved(self, conv: nn.Conv2d, x: Tensor) -> Tensor:
        """Folded convolution with its ReLU."""
        if not self._folded:
            return cast(Tensor, conv(x))
        options: dict[str, Any] = {"padding": (1, 1), "activation": "relu"}
        return frozen_conv2d(x, conv.weight, conv.bias, **options)


BACKBONE = Backbone(
    make=lambda seed: VGG16BN(),
    factors=(2, 4, 8, 16),
    norm=IMAGENET,
    published=Published(
        "vgg16_bn",
        "vgg16_bn-6c64b313.pth",
        "6c64b313",
        "torchvision's model zoo (download.pytorch.org/models)",
    ),
    fold=VGG16BN.fold_batch_norms,
)
