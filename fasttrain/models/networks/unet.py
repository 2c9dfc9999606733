"""The common interface of SongUNet and DhariwalUNet: their blocks, D2O-F's freezing, their plain
form.

"Revisiting Diffusion Models" (Zheng and Yang, arXiv 2506.09376) keeps most convolutions of the
pre-trained U-Net unchanged and trains norms, embeddings and the other small layers. A parameter
(weight or bias) is frozen when its name contains one of `SCOPES`, so that it sits in a block of the
U-Net, and a token of the level or of one below it:

    level   token           frozen inside the blocks                     trains (CIFAR-10 NCSN++)
    "none"                  nothing                                      100 %
    1       conv, proj      3x3 convolutions, attention's output         15.6 %
    2       qkv             and attention's queries, keys, values        13.5 %
    3       skip            and the skip paths' 1x1 convolutions          9.5 %
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fasttrain.models.networks.network import Network, Plain
from fasttrain.models.networks.resampling import Resampling
from fasttrain.models.networks.together import Ready, together
from fasttrain.models.networks.unet_block import UNetBlock
from fasttrain_kernels import resolve

__all__ = ["SCOPES", "TOKENS", "UNet", "first_level", "last_of_levels"]

SCOPES = ("block", "up", "down", "in")
"""A frozen parameter's name contains one of these."""
TOKENS: Mapping[int, tuple[str, ...]] = MappingProxyType(
    {1: ("conv", "proj"), 2: ("qkv",), 3: ("skip",)}
)
"""And one of these, of its level or of one below it."""

KINDS = {
    "conv": "conv",
    "qkv": "attention",
    "proj": "attention",
    "skip": "skip",
    "affine": "embedding",
    "norm": "norm",
}
"""A layer of a block -> its kind."""


class UNet(Network):
    """A U-Net of `UNetBlock`s under the published names."""

    def blocks(self) -> list[nn.Module]:
        kinds = (UNetBlock, Resampling)
        return [module for module in self.modules() if isinstance(module, kinds)]

    def ready(self, x: Tensor, emb: Tensor) -> dict[nn.Module, Ready]:
        """What the blocks need, made for all of them where launches count: with the kernels. Empty
        where each makes its own: on plain operators; in a compiled network, whose compiler fuses
        casts; and where ZeRO 3 holds a block's weights only while it runs."""
        if self.apart or torch.compiler.is_compiling() or resolve("auto", x) != "triton":
            return {}
        return together((block for block in self.blocks() if isinstance(block, UNetBlock)), x, emb)

    def freezing(self) -> dict[int, list[str]]:
        groups: dict[int, list[str]] = {level: [] for level in TOKENS}
        for name, _ in self.named_parameters():
            level = first_level(name)
            if level is not None:
                groups[level].append(name)
        return groups

    def kind_of(self, name: str) -> str:
        parts = name.split(".")
        if parts[0].startswith("map_"):
            return "embedding"
        if parts[0] in ("enc", "dec") and len(parts) > 3:  # in a block
            return KINDS[parts[2].rstrip("012")]
        return "norm" if "norm" in name else "ends"

    def judged(self) -> list[tuple[str, int, int]]:
        return last_of_levels(self)

    def noise_layer(self) -> str:
        return "map_layer1"

    def plain(self) -> Plain | None:
        return Plain(("fasttrain.models.export.plain_layers", "fasttrain.models.export.plain_unet"))


def last_of_levels(network: Any) -> list[tuple[str, int, int]]:
    """The last block of each level of a U-Net's encoder, which is named by its resolution, such as
    `32x32_block3`: `Network.judged`."""
    found: dict[int, tuple[str, int, int]] = {}
    for name, block in network.enc.items():
        if "_block" in name:
            side = int(name.partition("x")[0])
            found[side] = (f"enc.{name}", block.out_channels, side)
    return [*found.values()]


def first_level(name: str) -> int | None:
    """The lowest level that freezes the parameter of this dotted name, None where none does. Names
    are those of the U-Net or of its preconditioner, such as
    `model.enc.32x32_block0.conv0.weight`."""
    if not any(scope in name for scope in SCOPES):
        return None
    return next((n for n, tokens in TOKENS.items() if any(t in name for t in tokens)), None)
