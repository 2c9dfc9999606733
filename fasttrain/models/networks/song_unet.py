"""SongUNet: the DDPM++ and NCSN++ U-Nets of Song et al. ("Score-Based Generative Modeling through
Stochastic Differential Equations", arXiv 2011.13456) as EDM trains and publishes them.

DDPM++ is the default. NCSN++ is `embedding_type="fourier", encoder_type="residual",
channel_mult_noise=2, resample_filter=(1, 3, 3, 1)`: the encoder then also sees the image itself,
filtered down level by level and added to the features. `skip` variants carry the image alongside
(encoder) or sum an image out of every level (decoder).

Use:

    net = SongUNet(img_resolution=32, in_channels=3, out_channels=3, label_dim=10)
    out = net(x, noise_labels, class_labels)        # x [N, 3, 32, 32], noise_labels [N]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor, nn

from fasttrain.models.networks.conv import Conv2d
from fasttrain.models.networks.layers import (
    FourierEmbedding,
    GroupNorm,
    Init,
    Linear,
    PositionalEmbedding,
)
from fasttrain.models.networks.network import ClassRows
from fasttrain.models.networks.unet import UNet
from fasttrain.models.networks.unet_block import UNetBlock, add_residual, concatenate

__all__ = ["SongUNet", "drop_labels", "levels_of"]

_INIT = Init("xavier_uniform")
_INIT_ZERO = Init("xavier_uniform", weight=1e-5)
_INIT_ATTN = Init("xavier_uniform", weight=math.sqrt(0.2))
_EPS = 1e-6


def levels_of(
    img_resolution: int, model_channels: int, channel_mult: Sequence[int]
) -> list[tuple[int, int]]:
    """(resolution, width) of each level of a U-Net, the full resolution first.

    Raises:
        ValueError: a resolution that cannot be halved that often.
    """
    halvings = len(channel_mult) - 1
    if img_resolution % 2**halvings:
        raise ValueError(
            f"img_resolution {img_resolution} cannot be halved {halvings} times: "
            f"resize the images to a multiple of {2**halvings} or shorten channel_mult"
        )
    return [(img_resolution >> i, model_channels * m) for i, m in enumerate(channel_mult)]


def drop_labels(class_labels: Tensor, probability: float, training: bool) -> Tensor:
    """Zero each row of `class_labels` [N, label_dim] with `probability` while training, for
    classifier-free guidance. Draws from torch's default generator."""
    if not (training and probability):
        return class_labels
    keep = torch.rand(len(class_labels), 1, device=class_labels.device) >= probability
    return class_labels * keep.to(class_labels.dtype)


class SongUNet(UNet):
    """The DDPM++ / NCSN++ U-Net.

    Args:
        img_resolution, in_channels, out_channels: of the (square) images.
        label_dim: number of classes, 0 for unconditional.
        augment_dim: width of the augmentation labels, 0 for none.
        model_channels: width at full resolution; `channel_mult` multiplies it level by level.
        channel_mult_emb, channel_mult_noise: widths of the embedding vector and of the noise
            level's own embedding, in multiples of `model_channels`.
        num_blocks: residual blocks a level (the decoder has one more).
        attn_resolutions: where the blocks have (one-headed) self-attention.
        dropout: in the blocks, while training. label_dropout: of whole class labels.
        embedding_type: of the noise level: "positional", "fourier" or "zero" (the network does not
            see it; labels still count).
        encoder_type, decoder_type, resample_filter: see the module docstring.
    Raises:
        ValueError: an unknown embedding, encoder or decoder type; a resolution that cannot be
            halved as often as `channel_mult` asks.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        augment_dim: int = 0,
        model_channels: int = 128,
        channel_mult: Sequence[int] = (1, 2, 2, 2),
        channel_mult_emb: int = 4,
        num_blocks: int = 4,
        attn_resolutions: Sequence[int] = (16,),
        dropout: float = 0.10,
        label_dropout: float = 0.0,
        embedding_type: Literal["positional", "fourier", "zero"] = "positional",
        channel_mult_noise: int = 1,
        encoder_type: Literal["standard", "skip", "residual"] = "standard",
        decoder_type: Literal["standard", "skip"] = "standard",
        resample_filter: Sequence[int] = (1, 1),
    ) -> None:
        for name, value, known in (
            ("embedding_type", embedding_type, ("positional", "fourier", "zero")),
            ("encoder_type", encoder_type, ("standard", "skip", "residual")),
            ("decoder_type", decoder_type, ("standard", "skip")),
        ):
            if value not in known:
                raise ValueError(f"{name} is {value!r}: choose one of {', '.join(known)}")
        super().__init__()
        self.label_dim = label_dim
        self.label_dropout = label_dropout
        emb_channels = model_channels * channel_mult_emb
        self.noise_channels = model_channels * channel_mult_noise
        taps = tuple(resample_filter)
        block = partial(
            UNetBlock,
            emb_channels=emb_channels,
            dropout=dropout,
            skip_scale=math.sqrt(0.5),
            eps=_EPS,
            resample_filter=taps,
            resample_proj=True,
            adaptive_scale=False,
            init=_INIT,
            init_zero=_INIT_ZERO,
            init_attn=_INIT_ATTN,
        )
        self._build_mapping(embedding_type, label_dim, augment_dim, emb_channels)

        levels = levels_of(img_resolution, model_channels, channel_mult)
        self.enc = nn.ModuleDict()
        skips: list[int] = []
        width, aux_width = model_channels, in_channels
        for level, (res, channels) in enumerate(levels):
            at = f"{res}x{res}_"
            if level == 0:
                self.enc[at + "conv"] = Conv2d(in_channels, width, 3, init=_INIT)
            else:
                self.enc[at + "down"] = block(width, width, down=True)
                if encoder_type == "skip":
                    self.enc[at + "aux_down"] = Conv2d(
                        aux_width, aux_width, 0, down=True, resample_filter=taps
                    )
                    self.enc[at + "aux_skip"] = Conv2d(aux_width, width, 1, init=_INIT)
                if encoder_type == "residual":
                    self.enc[at + "aux_residual"] = Conv2d(
                        aux_width,
                        width,
                        3,
                        down=True,
                        resample_filter=taps,
                        fused_resample=True,
                        init=_INIT,
                    )
                    aux_width = width
            skips.append(width)
            for index in range(num_blocks):
                heads = int(res in attn_resolutions)
                self.enc[f"{at}block{index}"] = block(width, channels, heads=heads)
                width = channels
                skips.append(width)

        self.dec = nn.ModuleDict()
        for level, (res, channels) in reversed(list(enumerate(levels))):
            at = f"{res}x{res}_"
            if level == len(levels) - 1:
                self.dec[at + "in0"] = block(width, width, heads=1)
                self.dec[at + "in1"] = block(width, width)
            else:
                self.dec[at + "up"] = block(width, width, up=True)
            for index in range(num_blocks + 1):
                heads = int(index == num_blocks and res in attn_resolutions)
                self.dec[f"{at}block{index}"] = block(width + skips.pop(), channels, heads=heads)
                width = channels
            if decoder_type == "skip" or level == 0:
                if decoder_type == "skip" and level < len(levels) - 1:
                    self.dec[at + "aux_up"] = Conv2d(
                        out_channels,
                        out_channels,
                        0,
                        up=True,
                        resample_filter=taps,
                    )
                self.dec[at + "aux_norm"] = GroupNorm(width, eps=_EPS)
                self.dec[at + "aux_conv"] = Conv2d(width, out_channels, 3, init=_INIT_ZERO)

    def class_tables(self) -> list[ClassRows]:
        return [ClassRows("map_label.weight", dim=1, root=True)] if self.label_dim else []

    def _build_mapping(
        self, embedding_type: str, label_dim: int, augment_dim: int, emb_channels: int
    ) -> None:
        width = self.noise_channels
        self.map_noise: nn.Module | None = None
        if embedding_type == "positional":
            self.map_noise = PositionalEmbedding(width, endpoint=True)
        elif embedding_type == "fourier":
            self.map_noise = FourierEmbedding(width)
        self.map_label = Linear(label_dim, width, init=_INIT) if label_dim else None
        self.map_augment = (
            Linear(augment_dim, width, bias=False, init=_INIT) if augment_dim else None
        )
        self.map_layer0 = Linear(width, emb_channels, init=_INIT)
        self.map_layer1 = Linear(emb_channels, emb_channels, init=_INIT)

    def _embed(
        self, noise_labels: Tensor, class_labels: Tensor | None, augment_labels: Tensor | None
    ) -> Tensor:
        if self.map_noise is None:
            emb = noise_labels.new_zeros(len(noise_labels), self.noise_channels)
        else:  # the published weights expect the sines before the cosines
            cosines, sines = self.map_noise(noise_labels).chunk(2, dim=1)
            emb = torch.cat([sines, cosines], dim=1)
        if self.map_label is not None and class_labels is not None:
            labels = drop_labels(class_labels, self.label_dropout, self.training)
            emb = emb + self.map_label(labels * math.sqrt(self.label_dim))
        if self.map_augment is not None and augment_labels is not None:
            emb = emb + self.map_augment(augment_labels)
        emb = nn.functional.silu(self.map_layer0(emb))
        return nn.functional.silu(self.map_layer1(emb))

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x [N, in_channels, R, R] in the dtype to compute in, noise_labels [N] float32,
        class_labels [N, label_dim] float32 (None: no label, which is not the zero vector where
        the label layer has a bias), augment_labels [N, augment_dim] -> [N, out_channels, R, R]."""
        emb = self._embed(noise_labels, class_labels, augment_labels)
        ready = self.ready(x, emb)
        statistics: Tensor | None = None
        skips: list[tuple[Tensor, Tensor | None]] = []
        aux = x
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                aux = layer(aux)
            elif name.endswith("aux_skip"):
                x, statistics = x + layer(aux), None
                skips[-1] = (x, statistics)
            elif name.endswith("aux_residual"):
                x, statistics = add_residual(layer(aux), x, scale=math.sqrt(0.5))
                aux = x
                skips[-1] = (x, statistics)
            elif isinstance(layer, UNetBlock):
                x, statistics = layer(x, ready.get(layer, emb), statistics)
                skips.append((x, statistics))
            else:
                x = layer(x)
                skips.append((x, statistics))

        image: Tensor | None = None
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                image = layer(image)
            elif name.endswith("aux_norm"):
                features = layer(x, silu=True, statistics=statistics)
            elif name.endswith("aux_conv"):
                image = layer(features) if image is None else layer(features) + image
            else:
                if x.shape[1] != layer.in_channels:
                    x, statistics = concatenate(x, statistics, *skips.pop())
                x, statistics = layer(x, ready.get(layer, emb), statistics)
        assert image is not None
        return image
