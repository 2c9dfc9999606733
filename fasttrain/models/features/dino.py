"""Vision transformers trained without labels, for images that no ImageNet class fits: DINO's ViT-S
with patches of 16 pixels (Caron et al., arXiv 2104.14294) and DINOv2's with patches of 14 (Oquab et
al., arXiv 2304.07193), feature networks of the discriminator.

    x = x + ls1 proj(attention(qkv(norm1(x)))),     x = x + ls2 fc2(gelu(fc1(norm2(x))))

DINO has no scales ls. The tokens after blocks 3, 6, 9 and 12, without that of the class, are four
maps of the same size (Sauer et al., "StyleGAN-T", arXiv 2301.09515). Parameters have the published
names. For a grid of patches that is not the training's the position embedding is resized as the
published code does.

    network = DINO(patch=16, grid=14)
    maps = network.stages(images)                # normalised images [N, 3, H, W]
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.models.features.backbone import Backbone
from fasttrain.models.features.deit import Attention, Mlp, PatchEmbed
from fasttrain.models.features.weights import Published
from fasttrain_kernels import IMAGENET

__all__ = ["DINO", "DINOV2_VITS14", "DINO_VITS16", "WIDTH", "ClassToken"]

WIDTH, HEADS, BLOCKS = 384, 6, 12
NORM_EPS = 1e-6
OFFSET = 0.1
"""What the published code adds to the number of patches before it divides by the grid's."""


class Scale(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class Block(nn.Module):
    def __init__(self, scaled: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(WIDTH, eps=NORM_EPS)
        self.attn = Attention(WIDTH, HEADS)
        self.ls1 = Scale() if scaled else nn.Identity()
        self.norm2 = nn.LayerNorm(WIDTH, eps=NORM_EPS)
        self.mlp = Mlp(WIDTH)
        self.ls2 = Scale() if scaled else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1(self.attn(self.norm1(x)))
        return x + self.ls2(self.mlp(self.norm2(x)))


class DINO(nn.Module):
    """The transformer without its last norm.

    Args:
        patch: pixels a side of a patch.
        grid: patches a side of the images that its position embedding is for.
        scaled: whether the blocks have DINOv2's scales.
    Attributes:
        stage_channels: channels of the four maps of `stages`.
    """

    stage_channels = (WIDTH,) * 4

    def __init__(self, patch: int, grid: int, scaled: bool = False) -> None:
        super().__init__()
        self.patch, self.grid = patch, grid
        self.cls_token = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + grid**2, WIDTH) * 0.02)
        self.patch_embed = PatchEmbed(WIDTH, patch)
        self.blocks = nn.ModuleList(Block(scaled) for _ in range(BLOCKS))

    def stages(self, x: Tensor) -> list[Tensor]:
        """Four maps of one number for each patch, of images whose sides are multiples of `patch`.
        Differentiable twice in the images."""
        height, width = x.shape[2] // self.patch, x.shape[3] // self.patch
        return [
            tokens[:, 1:].transpose(1, 2).unflatten(2, (height, width))
            for tokens in self._tokens(x, height, width)
        ]

    def _tokens(self, x: Tensor, height: int, width: int) -> Iterator[Tensor]:
        """The tokens after every third block."""
        tokens = torch.cat([self.cls_token.expand(len(x), -1, -1), self.patch_embed(x)], dim=1)
        tokens = tokens + self._positions(height, width)
        for place, block in enumerate(self.blocks, start=1):
            tokens = block(tokens)
            if place % (BLOCKS // 4) == 0:
                yield tokens

    def _positions(self, height: int, width: int) -> Tensor:
        """The position embedding for a grid of patches, resized (bicubic) to it."""
        if (height, width) == (self.grid, self.grid):
            return self.pos_embed
        grid = self.pos_embed[:, 1:].unflatten(1, (self.grid, self.grid)).permute(0, 3, 1, 2)
        factors = tuple((side + OFFSET) / self.grid for side in (height, width))
        resized = F.interpolate(grid.float(), scale_factor=factors, mode="bicubic").to(grid.dtype)
        return torch.cat([self.pos_embed[:, :1], resized.flatten(2).transpose(1, 2)], dim=1)


class ClassToken(DINO):
    """The transformer with its last norm, of which the class token is the image's features."""

    def __init__(self, patch: int, grid: int, scaled: bool = False) -> None:
        super().__init__(patch, grid, scaled)
        self.norm = nn.LayerNorm(WIDTH, eps=NORM_EPS)

    def pooled(self, x: Tensor) -> Tensor:
        """Features [N, 384] of normalised images whose sides are multiples of `patch`."""
        *_, tokens = self._tokens(x, x.shape[2] // self.patch, x.shape[3] // self.patch)
        features: Tensor = self.norm(tokens[:, 0])
        return features


def _backbone(name: str, file: str, source: str, **arguments: Any) -> Backbone:
    make = partial(DINO, **arguments)
    return Backbone(
        make=lambda seed: make(),
        factors=(arguments["patch"],) * 4,
        norm=IMAGENET,
        published=Published(name, file, "", source),
        crops=True,
    )


DINO_VITS16 = _backbone(
    "dino_vits16",
    "dino_deitsmall16_pretrain.pth",
    "DINO's releases (dl.fbaipublicfiles.com/dino)",
    patch=16,
    grid=14,
)
DINOV2_VITS14 = _backbone(
    "dinov2_vits14",
    "dinov2_vits14_pretrain.pth",
    "DINOv2's releases (dl.fbaipublicfiles.com/dinov2)",
    patch=14,
    grid=37,
    scaled=True,
)
