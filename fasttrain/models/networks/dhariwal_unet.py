"""DhariwalUNet: the ADM U-Net of Dhariwal and Nichol ("Diffusion Models Beat GANs on Image
Synthesis", arXiv 2105.05233) as EDM trains and publishes it for ImageNet-64, and with the options
of the code that it came from (guided-diffusion, consistency models, latent-diffusion).

It differs from SongUNet in the adaptive group norm (the embedding scales and shifts after the
norm), attention at several resolutions with heads of 64 channels, unscaled residual sums, and
outputs that start at exactly zero.

Use:

    net = DhariwalUNet(img_resolution=64, in_channels=3, out_channels=3, label_dim=1000)
    out = net(x, noise_labels, class_labels)        # x [N, 3, 64, 64], noise_labels [N]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

from torch import Tensor, nn

from fasttrain.models.networks.conv import Conv2d
from fasttrain.models.networks.layers import GroupNorm, Init, Linear, PositionalEmbedding
from fasttrain.models.networks.network import ClassRows, Plain
from fasttrain.models.networks.resampling import Resampling
from fasttrain.models.networks.song_unet import drop_labels, levels_of
from fasttrain.models.networks.unet import UNet
from fasttrain.models.networks.unet_block import UNetBlock, concatenate

__all__ = ["DhariwalUNet"]

_INIT = Init("kaiming_uniform", weight=math.sqrt(1 / 3), bias=math.sqrt(1 / 3))
_INIT_ZERO = Init("kaiming_uniform", weight=0.0)


class DhariwalUNet(UNet):
    """The ADM U-Net, with attention at `attn_resolutions` and at the lowest resolution's first
    decoder block. Arguments as `SongUNet`'s, and those of ADM's own code:

    Args:
        num_heads: of every attention; 0: one for each `channels_per_head` channels, rounded down,
            so that a narrower level has no attention, as in EDM.
        norm_groups: of every norm; 0: EDM's rule. ADM's own have 32.
        adaptive_scale: whether the embedding scales after the norm, or only shifts before it.
        resample: by residual blocks, or by convolutions (of stride 2; or 2x nearest, then 3x3).
        noise_channels: width of the noise level's own embedding; 0: `model_channels`.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        channel_mult_emb: int = 4,
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (32, 16, 8),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        num_heads: int = 0,
        channels_per_head: int = 64,
        norm_groups: int = 0,
        adaptive_scale: bool = True,
        resample: Literal["block", "conv"] = "block",
        noise_channels: int = 0,
    ) -> None:
        if resample not in ("block", "conv"):
            raise ValueError(f"resample is {resample!r}: choose one of block, conv")
        super().__init__()
        self.label_dim = label_dim
        own = (num_heads, channels_per_head, norm_groups, adaptive_scale, resample, noise_channels)
        self.is_edm = own == (0, 64, 0, True, "block", 0)
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        block = partial(
            UNetBlock,
            emb_channels=emb_channels,
            dropout=dropout,
            init=_INIT,
            norm_groups=norm_groups,
            adaptive_scale=adaptive_scale,
            init_zero=_INIT_ZERO,
        )
        noise_channels = noise_channels or model_channels

        def heads(channels: int) -> int:
            number = num_heads or channels // channels_per_head
            if number and channels % number:
                raise ValueError(f"{channels} channels do not split into {number} heads")
            return number

        def resampled(width: int, *, up: bool = False, down: bool = False) -> nn.Module:
            if resample == "block":
                return block(width, width, up=up, down=down)
            return Resampling(width, up=up, down=down, init=_INIT)

        def heads_at(res: int, channels: int) -> int:
            return heads(channels) if res in attn_resolutions else 0

        self.map_noise = PositionalEmbedding(noise_channels)
        self.map_augment = (
            Linear(augment_dim, noise_channels, bias=False, init=_INIT_ZERO)
            if augment_dim
            else None
        )
        self.map_layer0 = Linear(noise_channels, emb_channels, init=_INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=_INIT)
        label_init = Init("kaiming_normal", weight=math.sqrt(label_dim))
        self.map_label = (
            Linear(label_dim, emb_channels, bias=False, init=label_init) if label_dim else None
        )

        levels = levels_of(img_resolution, model_channels, channel_mult)
        self.enc = nn.ModuleDict()
        skips: list[int] = []
        width = levels[0][1]
        for level, (res, channels) in enumerate(levels):
            at = f"{res}x{res}_"
            if level == 0:
                self.enc[at + "conv"] = Conv2d(in_channels, width, 3, init=_INIT)
            else:
                self.enc[at + "down"] = resampled(width, down=True)
            skips.append(width)
            for index in range(num_blocks):
                self.enc[f"{at}block{index}"] = block(
                    width, channels, heads=heads_at(res, channels)
                )
                width = channels
                skips.append(width)

        self.dec = nn.ModuleDict()
        for level, (res, channels) in reversed(list(enumerate(levels))):
            at = f"{res}x{res}_"
            if level == len(levels) - 1:
                self.dec[at + "in0"] = block(width, width, heads=heads(width))
                self.dec[at + "in1"] = block(width, width)
            else:
                self.dec[at + "up"] = resampled(width, up=True)
            for index in range(num_blocks + 1):
                self.dec[f"{at}block{index}"] = block(
                    width + skips.pop(), channels, heads=heads_at(res, channels)
                )
                width = channels
        self.out_norm = GroupNorm(width, groups=norm_groups)
        self.out_conv = Conv2d(width, out_channels, 3, init=_INIT_ZERO)

    def class_tables(self) -> list[ClassRows]:
        return [ClassRows("map_label.weight", dim=1)] if self.label_dim else []

    def plain(self) -> Plain | None:
        return super().plain() if self.is_edm else None

    def _embed(
        self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        emb = self.map_noise(noise_labels)
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = self.map_layer1(nn.functional.silu(self.map_layer0(emb)))
        if self.map_label is not None and class_labels is not None:
            labels = drop_labels(class_labels, self.label_dropout, self.training)
            emb = emb + self.map_label(labels)
        return nn.functional.silu(emb)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x [N, in_channels, R, R] in the dtype to compute in, noise_labels [N] float32,
        class_labels [N, label_dim] float32, augment_labels [N, augment_dim]
        -> [N, out_channels, R, R]."""
        emb = self._embed(noise_labels, class_labels, augment_labels)
        ready = self.ready(x, emb)
        statistics: Tensor | None = None
        skips: list[tuple[Tensor, Tensor | None]] = []
        for layer in self.enc.values():
            if isinstance(layer, UNetBlock | Resampling):
                x, statistics = layer(x, ready.get(layer, emb), statistics)
            else:
                x = layer(x)
            skips.append((x, statistics))
        for layer in self.dec.values():
            if x.shape[1] != layer.in_channels:
                x, statistics = concatenate(x, statistics, *skips.pop())
            x, statistics = layer(x, ready.get(layer, emb), statistics)
        return self.out_conv(self.out_norm(x, silu=True, statistics=statistics))
