"""The trained part of the projected discriminator: a small convolutional head on each projected
map, with spectral norm and "ghost" batch norm; conditional heads by class projection
(Sauer et al., arXiv 2111.01007; Miyato et al., "Spectral Normalization for GANs", arXiv 1802.05957;
Miyato and Koyama, "cGANs with Projection Discriminator", arXiv 1802.05637).

Every result is a function of the weights and of `norm_group` consecutive images, nothing else:
a forward pass changes no state. So world size and micro-batch do not change the result; a process
with fewer images than `norm_group` shares its groups with others (`peers.py`):

- spectral norm W / sigma, sigma = u^T W v, iterates u and v only when `iterate()` is called;
- batch norm has the statistics of groups of `norm_group` images and keeps no running ones.

Use:

    heads = Heads([64, 64, 128, 256], resolutions=(128, 64, 32, 16), norm_group=16, label_dim=10)
    logits = heads(projected, class_labels)          # [N, L]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.discriminator.norms import GhostBatchNorm, SpectralConv2d
from fasttrain.system.errors import UserError

__all__ = ["Head", "Heads"]


EMBEDDING_DIM = 320
"""Default width of a class embedding: that of EfficientNet-Lite0's last map."""

CONDITION_DIM = 64
"""Channels of the inner product of features and class embedding in a conditional head."""

SMALLEST_MAP = 4
"""The last convolution is 4x4 without padding."""


class ScaledLinear(nn.Module):
    """y = leaky_relu(x W^T / sqrt(in) + b, 0.2) * sqrt(2), with W drawn from N(0, 1)."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features))
        self.bias = nn.Parameter(torch.zeros(out_features))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight / math.sqrt(self.weight.shape[1])
        return F.leaky_relu(F.linear(x, weight, self.bias), 0.2) * math.sqrt(2)


class Halving(nn.Module):
    """Convolution 4x4 with stride 2, batch norm, leaky ReLU 0.2: half the size."""

    def __init__(self, in_channels: int, out_channels: int, norm_group: int) -> None:
        super().__init__()
        self.main = nn.Sequential(
            SpectralConv2d(in_channels, out_channels, 4, stride=2, padding=1),
            GhostBatchNorm(out_channels, norm_group),
        )

    def forward(self, x: Tensor) -> Tensor:
        conv, norm = self.main
        return cast(Tensor, norm(conv(x), leaky=True))


class Head(nn.Module):
    """One head: halve a map of nominal size `resolution` down to 8, then judge every 4x4 patch.

    Args:
        in_channels: channels of the map.
        resolution: nominal size of the map, a power of two. The head has log2(resolution / 8)
            halvings (none at 8 and 4), whatever the actual size of the map.
        norm_group: images that share batch norm statistics.
        width: channels at nominal size 8; half as many at each doubling.
        label_dim: number of classes; 0: one unconditional logit a patch.
        class_embedding: [label_dim, F], initial values of the embedding; default N(0, 1).
    """

    def __init__(
        self,
        in_channels: int,
        resolution: int,
        norm_group: int,
        *,
        width: int = 512,
        label_dim: int = 0,
        class_embedding: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_resolution(resolution)
        self.resolution = resolution
        self.label_dim = label_dim
        blocks: list[nn.Module] = []
        channels, size = in_channels, resolution
        while size > 8:
            size //= 2
            wider = max(1, width * 8 // size)
            blocks.append(Halving(channels, wider, norm_group))
            channels = wider
        self.halvings = len(blocks)
        out_channels = CONDITION_DIM if label_dim else 1
        self.main = nn.Sequential(*blocks, SpectralConv2d(channels, out_channels, 4, bias=False))
        if label_dim:
            start = embedding_start(label_dim, class_embedding)
            self.embed = nn.Embedding(label_dim, start.shape[1], _weight=start)
            self.embed_proj = ScaledLinear(start.shape[1], CONDITION_DIM)

    def forward(self, x: Tensor, class_labels: Tensor | None = None) -> Tensor:
        """Map [N, C, H, W], one-hot labels [N, label_dim] -> logits [N, number of patches].

        Raises UserError when the map is too small for the head's halvings.
        """
        smallest = min(x.shape[-2:]) >> self.halvings
        if smallest < SMALLEST_MAP:
            raise UserError(
                f"a head of nominal resolution {self.resolution} halves a map of "
                f"{min(x.shape[-2:])} px to {smallest} px, below {SMALLEST_MAP}: set smaller "
                f"discriminator.resolutions or a larger backbone resolution"
            )
        features = self.main(x)
        if not self.label_dim:
            return features.flatten(1)
        if class_labels is None or class_labels.shape[-1] != self.label_dim:
            got = "none" if class_labels is None else f"shape {tuple(class_labels.shape)}"
            raise UserError(
                f"the discriminator needs one-hot class_labels [N, {self.label_dim}], got {got}: "
                f"set label_dim to the data's number of classes"
            )
        embedding = self.embed_proj(class_labels.to(self.embed.weight.dtype) @ self.embed.weight)
        embedding = embedding.to(features.dtype) / math.sqrt(CONDITION_DIM)
        return torch.einsum("nchw,nc->nhw", features, embedding).flatten(1)


class Heads(nn.Module):
    """One head for each projected map of a feature network; their logits side by side.

    Args:
        in_channels: channels of the projected maps.
        resolutions: the heads' nominal resolutions; (128, 64, 32, 16) are the published ones, for
            feature networks at 224 px. With fewer of them than maps, the smallest maps have no
            head: at low input resolutions they are too small to halve, and a head without batch
            norm has logits and gradients far larger than the others'.
        norm_group, width, label_dim, class_embedding: see `Head`. Each head has its own copy of
            the class embedding.
    Raises:
        UserError: a resolution that is not a power of two from 4 up, more of them than maps, or an
            embedding of another number of classes.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        *,
        resolutions: Sequence[int] = (128, 64, 32, 16),
        norm_group: int,
        width: int = 512,
        label_dim: int = 0,
        class_embedding: Tensor | None = None,
    ) -> None:
        super().__init__()
        if not 1 <= len(resolutions) <= len(in_channels):
            raise UserError(
                f"{len(resolutions)} head resolutions {tuple(resolutions)} for {len(in_channels)} "
                f"feature maps: set discriminator.resolutions to one a map, or to fewer"
            )
        self.mini_discs = nn.ModuleList(
            Head(
                channels,
                resolution,
                norm_group,
                width=width,
                label_dim=label_dim,
                class_embedding=class_embedding,
            )
            for channels, resolution in zip(in_channels, resolutions, strict=False)
        )

    def forward(self, maps: Sequence[Tensor], class_labels: Tensor | None = None) -> Tensor:
        """Projected maps, one-hot labels [N, label_dim] -> logits [N, L], heads in order."""
        heads = zip(self.mini_discs, maps, strict=False)
        return torch.cat([head(features, class_labels) for head, features in heads], dim=1)


def check_resolution(resolution: int) -> None:
    """Raise UserError unless it is a power of two, 4 or more."""
    if resolution < SMALLEST_MAP or resolution & (resolution - 1):
        raise UserError(
            f"head resolution {resolution} is not a power of two from {SMALLEST_MAP} up: set "
            f"discriminator.resolutions to such numbers, like 128, 64, 32, 16"
        )


def embedding_start(label_dim: int, class_embedding: Tensor | None) -> Tensor:
    """A copy of the embedding, or N(0, 1), [label_dim, F] float32."""
    if class_embedding is None:
        return torch.randn(label_dim, EMBEDDING_DIM)
    if class_embedding.ndim != 2 or class_embedding.shape[0] != label_dim:
        raise UserError(
            f"a class embedding of shape {tuple(class_embedding.shape)} for {label_dim} classes: "
            f"it needs one row for each class"
        )
    return class_embedding.detach().float().clone()
