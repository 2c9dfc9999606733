"""FID's Inception-v3 (Szegedy et al., arXiv 1512.00567): the network of December 2015 in
TensorFlow, which published FIDs use.

It is not torchvision's Inception-v3: average pooling leaves the padding out of its mean, the last
block pools by maximum, there are 1008 classes, and the images' resize is TensorFlow 1's, inside the
network. Every convolution is followed by a batch norm and ReLU.

Parameters have the names of pytorch-fid's port of the weights (`Mixed_5b.branch1x1.conv.weight`),
so its file loads.

    network = InceptionV3()
    network.load_state_dict(weights)
    network.fold_batch_norms()                   # the same numbers, fewer operations
    features = network.pooled(levels)            # [N, 2048] of images [N, 3, H, W] in 0..255
    scores = network.logits(features)            # [N, 1008], without the bias
"""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.models.features.folding import folded
from fasttrain.models.features.tf1_resize import tf1_bilinear
from fasttrain.models.features.weights import Published
from fasttrain.models.networks.frozen_conv import frozen_conv2d

__all__ = ["FEATURES", "PUBLISHED", "SIDE", "InceptionV3"]

SIDE = 299
FEATURES = 2048
CLASSES = 1008
PUBLISHED = Published(
    "inception",
    "pt_inception-2015-12-05-6726825d.pth",
    "6726825d",
    "pytorch-fid's releases (github.com/mseitzer/pytorch-fid, fid_weights)",
    "with --weights (evaluate.weights in a recipe)",
)
Pair = tuple[int, int]


class ConvNorm(nn.Module):
    """Convolution, batch norm, ReLU. Without `pad` only whole windows count; with it, and stride 1,
    the map keeps its size."""

    def __init__(self, cin: int, cout: int, kernel: Pair, stride: int = 1, pad: bool = False):
        super().__init__()
        self.padding: Pair = (kernel[0] // 2, kernel[1] // 2) if pad else (0, 0)
        self.stride = stride
        self.conv = nn.Conv2d(cin, cout, kernel, stride, self.padding, bias=False)
        self.bn: nn.Module = nn.BatchNorm2d(cout, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(self.bn, nn.Identity):
            return F.relu(self.bn(self.conv(x)))
        options: dict[str, Any] = {"stride": (self.stride, self.stride), "padding": self.padding}
        return frozen_conv2d(x, self.conv.weight, self.conv.bias, **options, activation="relu")


def point(cin: int, cout: int) -> ConvNorm:
    """1x1 convolution."""
    return ConvNorm(cin, cout, (1, 1))


def same(cin: int, cout: int, height: int, width: int) -> ConvNorm:
    """height x width convolution that keeps the map's size."""
    return ConvNorm(cin, cout, (height, width), pad=True)


def halving(cin: int, cout: int) -> ConvNorm:
    """3x3 convolution with stride 2."""
    return ConvNorm(cin, cout, (3, 3), stride=2)


def neighbours(x: Tensor, kind: Literal["mean", "max"] = "mean") -> Tensor:
    """3x3 pooling that keeps the size; the mean is over pixels inside the map."""
    if kind == "max":
        return F.max_pool2d(x, 3, 1, 1)
    return F.avg_pool2d(x, 3, 1, 1, count_include_pad=False)


def halved(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, 2)


class MixedA(nn.Module):
    """35x35: 1x1, 5x5, two 3x3, pooling."""

    def __init__(self, cin: int, pooled: int):
        super().__init__()
        self.branch1x1 = point(cin, 64)
        self.branch5x5_1, self.branch5x5_2 = point(cin, 48), same(48, 64, 5, 5)
        self.branch3x3dbl_1 = point(cin, 64)
        self.branch3x3dbl_2, self.branch3x3dbl_3 = same(64, 96, 3, 3), same(96, 96, 3, 3)
        self.branch_pool = point(cin, pooled)

    def forward(self, x: Tensor) -> Tensor:
        five = self.branch5x5_2(self.branch5x5_1(x))
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch1x1(x), five, double, self.branch_pool(neighbours(x))], 1)


class MixedB(nn.Module):
    """35x35 to 17x17."""

    def __init__(self, cin: int):
        super().__init__()
        self.branch3x3 = halving(cin, 384)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = point(cin, 64), same(64, 96, 3, 3)
        self.branch3x3dbl_3 = halving(96, 96)

    def forward(self, x: Tensor) -> Tensor:
        double = self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x)))
        return torch.cat([self.branch3x3(x), double, halved(x)], 1)


class MixedC(nn.Module):
    """17x17: 1x1, 7x7 as 1x7 and 7x1, the same twice, pooling."""

    def __init__(self, cin: int, mid: int):
        super().__init__()
        self.branch1x1 = point(cin, 192)
        self.branch7x7_1 = point(cin, mid)
        self.branch7x7_2, self.branch7x7_3 = same(mid, mid, 1, 7), same(mid, 192, 7, 1)
        self.branch7x7dbl_1 = point(cin, mid)
        self.branch7x7dbl_2, self.branch7x7dbl_3 = same(mid, mid, 7, 1), same(mid, mid, 1, 7)
        self.branch7x7dbl_4, self.branch7x7dbl_5 = same(mid, mid, 7, 1), same(mid, 192, 1, 7)
        self.branch_pool = point(cin, 192)

    def forward(self, x: Tensor) -> Tensor:
        seven = self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x)))
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        double = self.branch7x7dbl_5(self.branch7x7dbl_4(double))
        return torch.cat([self.branch1x1(x), seven, double, self.branch_pool(neighbours(x))], 1)


class MixedD(nn.Module):
    """17x17 to 8x8."""

    def __init__(self, cin: int):
        super().__init__()
        self.branch3x3_1, self.branch3x3_2 = point(cin, 192), halving(192, 320)
        self.branch7x7x3_1 = point(cin, 192)
        self.branch7x7x3_2, self.branch7x7x3_3 = same(192, 192, 1, 7), same(192, 192, 7, 1)
        self.branch7x7x3_4 = halving(192, 192)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_2(self.branch3x3_1(x))
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return torch.cat([three, self.branch7x7x3_4(seven), halved(x)], 1)


class MixedE(nn.Module):
    """8x8: 1x1, 3x3 as 1x3 beside 3x1, the same after a 3x3, pooling."""

    def __init__(self, cin: int, pooling: Literal["mean", "max"]):
        super().__init__()
        self.pooling = pooling
        self.branch1x1 = point(cin, 320)
        self.branch3x3_1 = point(cin, 384)
        self.branch3x3_2a, self.branch3x3_2b = same(384, 384, 1, 3), same(384, 384, 3, 1)
        self.branch3x3dbl_1, self.branch3x3dbl_2 = point(cin, 448), same(448, 384, 3, 3)
        self.branch3x3dbl_3a, self.branch3x3dbl_3b = same(384, 384, 1, 3), same(384, 384, 3, 1)
        self.branch_pool = point(cin, 192)

    def forward(self, x: Tensor) -> Tensor:
        three = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        maps = [
            self.branch1x1(x),
            self.branch3x3_2a(three),
            self.branch3x3_2b(three),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(neighbours(x, self.pooling)),
        ]
        return torch.cat(maps, 1)


class InceptionV3(nn.Module):
    """The network, randomly initialised, in float32; see the module's docstring."""

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = halving(3, 32)
        self.Conv2d_2a_3x3 = ConvNorm(32, 32, (3, 3))
        self.Conv2d_2b_3x3 = same(32, 64, 3, 3)
        self.Conv2d_3b_1x1 = point(64, 80)
        self.Conv2d_4a_3x3 = ConvNorm(80, 192, (3, 3))
        self.Mixed_5b, self.Mixed_5c = MixedA(192, 32), MixedA(256, 64)
        self.Mixed_5d, self.Mixed_6a = MixedA(288, 64), MixedB(288)
        self.Mixed_6b, self.Mixed_6c = MixedC(768, 128), MixedC(768, 160)
        self.Mixed_6d, self.Mixed_6e = MixedC(768, 160), MixedC(768, 192)
        self.Mixed_7a = MixedD(768)
        self.Mixed_7b, self.Mixed_7c = MixedE(1280, "mean"), MixedE(FEATURES, "max")
        self.fc = nn.Linear(FEATURES, CLASSES)

    def pooled(self, levels: Tensor) -> Tensor:
        """Images [N, 3, H, W] of any size, float with the values 0 to 255 -> features [N, 2048]."""
        return self.maps((tf1_bilinear(levels, (SIDE, SIDE)) - 128) / 128).mean(dim=(2, 3))

    def maps(self, x: Tensor) -> Tensor:
        """The last map [N, 2048, h, w] of images [N, 3, H, W] in [-1, 1], of 75 pixels or more."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = halved(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(halved(x))))
        for name, block in self.named_children():
            if name.startswith("Mixed"):  # in the order of construction
                x = block(x)
        return x

    def logits(self, features: Tensor) -> Tensor:
        """Logits [N, 1008] of features [N, 2048], without the bias, for the inception score."""
        return features @ self.fc.weight.T

    forward = pooled

    def fold_batch_norms(self) -> None:
        """Put each batch norm into the convolution before it, in place (evaluation mode only)."""
        for module in self.modules():
            if isinstance(module, ConvNorm) and not isinstance(module.bn, nn.Identity):
                module.conv = folded(module.conv, cast(nn.BatchNorm2d, module.bn))
                module.bn = nn.Identity()
