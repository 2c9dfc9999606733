"""EDM2's magnitude-preserving U-Net (Karras et al., "Analyzing and Improving the Training Dynamics
of Diffusion Models", arXiv 2312.02696, config G), under its published names.

A residual block has no norms and no biases: what keeps activations in bounds is the layers of
`fasttrain.models.networks.magnitude`. With e the embedding of noise level and class:

    encoder  x = pixel(skip(x))                                       decoder  x as it is
    y = conv1(dropout(silu(conv0(silu(x)) * (1 + gain linear(e)))))
    x = sum(x, y, t = res_balance)                                    decoder  x = skip(x) first
    x = sum(x, proj(attention(pixel(qkv(x)))), t = attn_balance)      where the block has attention

The image goes in with a channel of ones, which stands for the biases.

Use:

    net = EDM2UNet(img_resolution=64, in_channels=3, out_channels=3, label_dim=1000)
    out = net(x, noise_labels, class_labels)        # x [N, 3, 64, 64], noise_labels [N]
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasttrain.models.networks.magnitude import (
    MPConv,
    MPFourier,
    force_normalised,
    forced,
    mp_cat,
    mp_silu,
    mp_sum,
    normalise,
)
from fasttrain.models.networks.network import ClassRows, Network
from fasttrain.models.networks.song_unet import drop_labels, levels_of
from fasttrain.models.networks.unet import last_of_levels
from fasttrain_kernels import MOST_HEAD_SIZE, attention, resample2d

__all__ = ["EDM2Block", "EDM2UNet"]

_CLIP = 256.0
"""Largest activation that leaves a block; half precision has room for its squares' sums."""


class EDM2Block(nn.Module):
    """The residual block of the module docstring, of the encoder or of the decoder."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        emb_channels: int,
        *,
        encoder: bool,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[int] = (1, 1),
        heads: int = 0,
        dropout: float = 0.0,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
    ) -> None:
        if heads and out_channels % heads:
            raise ValueError(f"{out_channels} channels do not split into {heads} heads")
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.encoder = encoder
        self.up = up
        self.down = down
        self.taps = tuple(resample_filter)
        self.heads = heads
        self.dropout = dropout
        self.res_balance = res_balance
        self.attn_balance = attn_balance
        self.emb_gain = nn.Parameter(torch.zeros(1))  # DeepSpeed takes no scalars
        self.conv_res0 = MPConv(out_channels if encoder else in_channels, out_channels, 3)
        self.emb_linear = MPConv(emb_channels, out_channels)
        self.conv_res1 = MPConv(out_channels, out_channels, 3)
        self.conv_skip = (
            MPConv(in_channels, out_channels, 1) if in_channels != out_channels else None
        )
        self.attn_qkv = MPConv(out_channels, 3 * out_channels, 1, heads=heads) if heads else None
        self.attn_proj = MPConv(out_channels, out_channels, 1) if heads else None

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        """x [N, in_channels, H, W], emb [N, emb_channels] -> [N, out_channels, H', W'] in the
        dtype of x."""
        if self.up or self.down:
            x = resample2d(x, "up" if self.up else "down", taps=self.taps)
        if self.encoder:
            x = normalise(x if self.conv_skip is None else self.conv_skip(x), dim=1)
        scale = self.emb_linear(emb, gain=self.emb_gain) + 1
        y = self.conv_res0(mp_silu(x))
        y = mp_silu(y * scale[:, :, None, None].to(y.dtype))
        y = self.conv_res1(F.dropout(y, self.dropout, self.training))
        if not self.encoder and self.conv_skip is not None:
            x = self.conv_skip(x)
        x = mp_sum(x, y, self.res_balance)
        if self.attn_qkv is not None and self.attn_proj is not None:
            x = mp_sum(x, self.attn_proj(self._attend(self.attn_qkv(x))), self.attn_balance)
        return x.clamp(-_CLIP, _CLIP)

    def _attend(self, qkv: Tensor) -> Tensor:
        """Attention of normalised queries, keys and values, which all have the same layout."""
        parts = normalise(qkv.unflatten(1, (3, self.heads, -1)), dim=3).flatten(1, 3)
        if qkv.is_contiguous(memory_format=torch.channels_last):
            parts = parts.contiguous(memory_format=torch.channels_last)
        small = self.out_channels <= self.heads * MOST_HEAD_SIZE
        return attention(parts, heads=self.heads, impl="auto" if small else "reference")


class EDM2UNet(Network):
    """The magnitude-preserving U-Net. Arguments as `SongUNet`'s, and:

    Args:
        channel_mult_noise, channel_mult_emb: widths of the noise level's features and of the
            embedding, in multiples of `model_channels`; 0: that of the first level, and of the
            widest.
        channels_per_head: heads are `channels // channels_per_head`.
        label_balance, concat_balance, res_balance, attn_balance: t of the sums and concatenations.
    """

    def __init__(
        self,
        img_resolution: int,
        in_channels: int,
        out_channels: int,
        label_dim: int = 0,
        model_channels: int = 192,
        channel_mult: Sequence[int] = (1, 2, 3, 4),
        num_blocks: int = 3,
        attn_resolutions: Sequence[int] = (16, 8),
        dropout: float = 0.0,
        label_dropout: float = 0.0,
        resample_filter: Sequence[int] = (1, 1),
        noise_multiple: int = 0,
        emb_multiple: int = 0,
        channels_per_head: int = 64,
        label_balance: float = 0.5,
        concat_balance: float = 0.5,
        res_balance: float = 0.3,
        attn_balance: float = 0.3,
    ) -> None:
        super().__init__()
        self.label_dim = label_dim
        self.label_dropout = label_dropout
        self.label_balance = label_balance
        self.concat_balance = concat_balance
        levels = levels_of(img_resolution, model_channels, channel_mult)
        noise_channels = model_channels * noise_multiple or levels[0][1]
        emb_channels = model_channels * emb_multiple or max(width for _, width in levels)
        block = partial(
            EDM2Block,
            emb_channels=emb_channels,
            resample_filter=tuple(resample_filter),
            dropout=dropout,
            res_balance=res_balance,
            attn_balance=attn_balance,
        )

        def heads_at(res: int, channels: int) -> int:
            return channels // channels_per_head if res in attn_resolutions else 0

        self.out_gain = nn.Parameter(torch.zeros(1))
        self.emb_fourier = MPFourier(noise_channels)
        self.emb_noise = MPConv(noise_channels, emb_channels)
        self.emb_label = MPConv(label_dim, emb_channels) if label_dim else None
        self.enc = nn.ModuleDict()
        skips: list[int] = []
        width = in_channels + 1
        for level, (res, channels) in enumerate(levels):
            at = f"{res}x{res}_"
            if level == 0:
                self.enc[at + "conv"] = MPConv(width, channels, 3)
                width = channels
            else:
                self.enc[at + "down"] = block(width, width, encoder=True, down=True)
            skips.append(width)
            for index in range(num_blocks):
                self.enc[f"{at}block{index}"] = block(
                    width, channels, encoder=True, heads=heads_at(res, channels)
                )
                width = channels
                skips.append(width)
        self.dec = nn.ModuleDict()
        for level, (res, channels) in reversed(list(enumerate(levels))):
            at = f"{res}x{res}_"
            if level == len(levels) - 1:
                heads = width // channels_per_head
                self.dec[at + "in0"] = block(width, width, encoder=False, heads=heads)
                self.dec[at + "in1"] = block(width, width, encoder=False)
            else:
                self.dec[at + "up"] = block(width, width, encoder=False, up=True)
            for index in range(num_blocks + 1):
                heads = heads_at(res, channels)
                self.dec[f"{at}block{index}"] = block(
                    width + skips.pop(), channels, encoder=False, heads=heads
                )
                width = channels
        self.out_conv = MPConv(width, out_channels, 3)

    def forward(
        self,
        x: Tensor,
        noise_labels: Tensor,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """x [N, in_channels, R, R] in the dtype to compute in, noise_labels [N] float32,
        class_labels [N, label_dim] float32 -> [N, out_channels, R, R]; there are no augmentation
        labels."""
        emb = self.emb_noise(self.emb_fourier(noise_labels))
        if self.emb_label is not None and class_labels is not None:
            labels = drop_labels(class_labels, self.label_dropout, self.training)
            label = self.emb_label(labels * math.sqrt(self.label_dim))
            emb = mp_sum(emb, label, self.label_balance)
        emb = mp_silu(emb)
        x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
        skips: list[Tensor] = []
        for layer in self.enc.values():
            x = layer(x, emb) if isinstance(layer, EDM2Block) else layer(x)
            skips.append(x)
        for name, layer in self.dec.items():
            if "block" in name:
                x = mp_cat(x, skips.pop(), self.concat_balance)
            x = layer(x, emb)
        return self.out_conv(x, gain=self.out_gain)

    def blocks(self) -> list[EDM2Block]:
        return [module for module in self.modules() if isinstance(module, EDM2Block)]

    def freezing(self) -> dict[int, list[str]]:
        """As of EDM's U-Nets: the blocks' 3x3 convolutions and attention's output, then queries,
        keys and values, then the skip paths. Gains and embeddings train at every level."""
        kinds = {1: ("conv_res", "attn_proj"), 2: ("attn_qkv",), 3: ("conv_skip",)}
        inside = [name for name, _ in self.named_parameters() if name.count(".") > 2]
        return {
            level: [name for name in inside if name.split(".")[2].startswith(starts)]
            for level, starts in kinds.items()
        }

    def kind_of(self, name: str) -> str:
        part = name.split(".")[2] if name.count(".") > 1 else name
        if part.startswith(("emb_",)):
            return "embedding"
        kinds = {"conv_res": "conv", "attn_": "attention", "conv_skip": "skip"}
        return next((kind for start, kind in kinds.items() if part.startswith(start)), "ends")

    def class_tables(self) -> list[ClassRows]:
        return [ClassRows("emb_label.weight", dim=1)] if self.label_dim else []

    def judged(self) -> list[tuple[str, int, int]]:
        return last_of_levels(self)

    def changes_after_step(self) -> list[nn.Parameter]:
        return forced(self)

    def after_step(self) -> None:
        """Forced weight normalisation, once an optimizer has moved the weights."""
        force_normalised(self)
