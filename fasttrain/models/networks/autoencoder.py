"""The KL autoencoder of latent diffusion (Rombach et al., "High-Resolution Image Synthesis with
Latent Diffusion Models", arXiv 2112.10752, appendix G), and the same with a codebook (VQ), under
diffusers' names of its weights.

    vae = AutoencoderKL(3, 3, 4, widths=(128, 256, 512, 512), layers=2)
    mean, deviation = vae.encode(images)           # [N, 4, H / 8, W / 8] each
    images = vae.decode(mean)

A level of the encoder has `layers` residual blocks, the decoder's one more; between levels the
encoder halves by a convolution of stride 2 that pads below and to the right only, the decoder
doubles by repetition and a convolution. In the middle of each is attention with one head. It is
plain torch and differentiable twice: a discriminator may look through the decoder.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["AutoencoderKL"]

_EPS = 1e-6
_LEAST, _MOST = -30.0, 20.0
"""Bounds of the logarithm of the variance."""
_AT_ONCE = 1024
"""Codes that latents are compared with at once: 16 MB for an image of 64x64 latents."""


class ResnetBlock(nn.Module):
    """x + conv2(silu(norm2(conv1(silu(norm1(x))))))."""

    def __init__(self, in_channels: int, out_channels: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, in_channels, _EPS)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, _EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(in_channels, out_channels, 1) if in_channels != out_channels else None
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(nn.Module):
    """x + to_out(attention of to_q, to_k, to_v of the normalised x), over all pixels."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, channels, _EPS)
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, x: Tensor) -> Tensor:
        h = self.group_norm(x).flatten(2).transpose(1, 2)
        # Not torch's fused attention, which has no second derivative.
        weights = self.to_q(h) @ self.to_k(h).transpose(1, 2) / math.sqrt(x.shape[1])
        h = self.to_out[0](weights.softmax(dim=-1) @ self.to_v(h))
        return x + h.transpose(1, 2).reshape(x.shape)


class Downsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class Level(nn.Module):
    """Residual blocks, then a halving or a doubling, but for the last level."""

    def __init__(self, widths: Sequence[int], groups: int, down: bool, up: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(i, o, groups) for i, o in pairwise(widths))
        if down:
            self.downsamplers = nn.ModuleList([Downsample(widths[-1])])
        if up:
            self.upsamplers = nn.ModuleList([Upsample(widths[-1])])

    def forward(self, x: Tensor) -> Tensor:
        for layers in self.children():
            for layer in layers.children():
                x = layer(x)
        return x


class Middle(nn.Module):
    def __init__(self, channels: int, groups: int, attention: bool) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(ResnetBlock(channels, channels, groups) for _ in range(2))
        self.attentions = nn.ModuleList([Attention(channels, groups)] if attention else [])

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for layer in self.attentions:
            x = layer(x)
        return self.resnets[1](x)


class Encoder(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int], layers: int, groups: int,
        attention: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList(
            Level([before, *[width] * layers], groups, down=k < len(widths) - 1, up=False)
            for k, (before, width) in enumerate(zip((widths[0], *widths), widths, strict=False))
        )
        self.mid_block = Middle(widths[-1], groups, attention)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], _EPS)
        self.conv_out = nn.Conv2d(widths[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nn.Module):
    def __init__(
        self, in_channels: int, out_channels: int, widths: Sequence[int], layers: int, groups: int,
        attention: bool,
    ) -> None:  # fmt: skip
        super().__init__()
        wide = [*reversed(widths)]
        self.conv_in = nn.Conv2d(in_channels, wide[0], 3, padding=1)
        self.mid_block = Middle(wide[0], groups, attention)
        self.up_blocks = nn.ModuleList(
            Level([before, *[width] * (layers + 1)], groups, down=False, up=k < len(wide) - 1)
            for k, (before, width) in enumerate(zip((wide[0], *wide), wide, strict=False))
        )
        self.conv_norm_out = nn.GroupNorm(groups, wide[-1], _EPS)
        self.conv_out = nn.Conv2d(wide[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(x))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))


class Codebook(nn.Module):
    """Each pixel's latents become the nearest of the codes; gradients pass as if they had not
    (van den Oord et al., arXiv 1711.00937)."""

    def __init__(self, codes: int, channels: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(codes, channels)

    def forward(self, x: Tensor) -> Tensor:
        rows = x.detach().movedim(1, -1)
        least = [
            (part.square().sum(1) - 2 * rows @ part.T).min(dim=-1)
            for part in self.embedding.weight.detach().split(_AT_ONCE)
        ]
        part = torch.stack([each.values for each in least]).argmin(dim=0)
        index = torch.stack([each.indices for each in least]).gather(0, part[None])[0]
        nearest = self.embedding(index + part * _AT_ONCE).movedim(-1, 1)
        return x + (nearest - x).detach()


class AutoencoderKL(nn.Module):
    """Encoder and decoder.

    Args:
        in_channels, out_channels: of the images.
        latent_channels: of the latents.
        widths: channels of each level; the images are halved between two.
        layers: residual blocks of a level of the encoder.
        groups: of every norm.
        attention: whether there is any in the middle.
        quantised, dequantised: whether a 1x1 convolution follows the encoder, precedes the decoder.
        codes: size of the codebook of a VQ autoencoder, whose encoder gives no deviation; 0: none.
    Raises:
        ValueError: widths that the groups do not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        latent_channels: int,
        *,
        widths: Sequence[int],
        layers: int,
        groups: int = 32,
        attention: bool = True,
        quantised: bool = True,
        dequantised: bool = True,
        codes: int = 0,
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels = in_channels, out_channels
        self.latent_channels, self.factor = latent_channels, 2 ** (len(widths) - 1)
        made = latent_channels if codes else 2 * latent_channels
        self.encoder = Encoder(in_channels, made, widths, layers, groups, attention)
        self.decoder = Decoder(latent_channels, out_channels, widths, layers, groups, attention)
        self.quant_conv = nn.Conv2d(made, made, 1) if quantised else None
        self.quantize = Codebook(codes, latent_channels) if codes else None
        self.post_quant_conv = (
            nn.Conv2d(latent_channels, latent_channels, 1) if dequantised else None
        )

    def encode(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images [N, C, H, W] -> mean and standard deviation of the latents, [N, C', H', W'] each;
        sides are divided by `factor`."""
        moments = self.encoder(images)
        if self.quant_conv is not None:
            moments = self.quant_conv(moments)
        if self.quantize is not None:
            return moments, torch.zeros_like(moments)
        mean, variance = moments.chunk(2, dim=1)
        return mean, torch.exp(variance.clamp(_LEAST, _MOST) / 2)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents [N, C', H', W'] -> images [N, C, H, W], unclipped."""
        if self.quantize is not None:
            latents = self.quantize(latents)
        if self.post_quant_conv is not None:
            latents = self.post_quant_conv(latents)
        return self.decoder(latents)
