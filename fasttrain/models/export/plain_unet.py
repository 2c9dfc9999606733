"""The DDPM++ / NCSN++ and ADM U-Nets (Song et al., arXiv 2011.13456; Dhariwal and Nichol, arXiv
2105.05233) in plain torch, to hand on: nothing here trains and nothing is fused. On a CPU they
compute, bit by bit, what `fasttrain.models.networks` computes; weights have their published names.

    unet = build_plain(**config)                     # then unet.load_state_dict(...)
    raw = unet(x, noise_levels, one_hot_labels)

What is below the line goes into exported pipelines as it is.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.models.export.plain_layers import Block, Conv, Fourier, Norm, Positional

# ---------------------------------------------------------------- copied into exports from here


FLOAT32 = ["map_noise"]
"""Frequencies keep their digits in any dtype."""


class UNet(nn.Module):
    """Both U-Nets: `adm`, or DDPM++ / NCSN++ with their encoders and decoders."""

    def __init__(
        self,
        *,
        adm: bool,
        size: int,
        channels: int,
        label_dim: int,
        width: int,
        mult: Sequence[int],
        mult_emb: int,
        blocks: int,
        attention: Sequence[int],
        embedding: str,
        mult_noise: int,
        encoder: str,
        decoder: str,
        taps: Sequence[int],
    ) -> None:
        super().__init__()
        self.adm, self.label_dim, self.noise = adm, label_dim, width * mult_noise
        emb, noise = width * mult_emb, self.noise
        self.map_label: nn.Module | None = None
        if label_dim:
            self.map_label = nn.Linear(label_dim, emb if adm else noise, bias=not adm)
        self.map_layer0, self.map_layer1 = nn.Linear(noise, emb), nn.Linear(emb, emb)
        # After these: diffusers takes the kind of the first weight for that of all.
        self.map_noise: nn.Module | None = None
        if embedding == "fourier":
            self.map_noise = Fourier(noise)
        elif embedding == "positional":
            self.map_noise = Positional(noise, endpoint=not adm)

        def block(cin: int, cout: int, *, mode: str = "", heads: int = 0) -> Block:
            return Block(cin, cout, emb=emb, adm=adm, mode=mode, heads=heads, taps=taps)

        def heads(here: bool, cout: int) -> int:
            return 0 if not here else cout // 64 if adm else 1

        levels = [(size >> i, width * m) for i, m in enumerate(mult)]
        self.enc, self.dec = nn.ModuleDict(), nn.ModuleDict()
        skips: list[int] = []
        c, aux = levels[0][1] if adm else width, channels
        for i, (res, cout) in enumerate(levels):
            at = f"{res}x{res}_"
            if i == 0:
                self.enc[at + "conv"] = Conv(channels, c, 3)
            else:
                self.enc[at + "down"] = block(c, c, mode="down")
                if encoder == "skip":
                    self.enc[at + "aux_down"] = Conv(aux, aux, 0, mode="down", taps=taps)
                    self.enc[at + "aux_skip"] = Conv(aux, c, 1)
                elif encoder == "residual":
                    late = Conv(aux, c, 3, mode="down", taps=taps, late=True)
                    self.enc[at + "aux_residual"], aux = late, c
            skips.append(c)
            for k in range(blocks):
                self.enc[f"{at}block{k}"] = block(c, cout, heads=heads(res in attention, cout))
                c = cout
                skips.append(c)
        for i, (res, cout) in reversed(list(enumerate(levels))):
            at = f"{res}x{res}_"
            if i == len(levels) - 1:
                self.dec[at + "in0"] = block(c, c, heads=heads(True, c))
                self.dec[at + "in1"] = block(c, c)
            else:
                self.dec[at + "up"] = block(c, c, mode="up")
            for k in range(blocks + 1):
                here = res in attention and (adm or k == blocks)
                self.dec[f"{at}block{k}"] = block(c + skips.pop(), cout, heads=heads(here, cout))
                c = cout
            if not adm and (decoder == "skip" or i == 0):
                if decoder == "skip" and i < len(levels) - 1:
                    self.dec[at + "aux_up"] = Conv(channels, channels, 0, mode="up", taps=taps)
                self.dec[at + "aux_norm"] = Norm(c, 1e-6)
                self.dec[at + "aux_conv"] = Conv(c, channels, 3)
        if adm:
            self.out_norm, self.out_conv = Norm(c, 1e-5), Conv(c, channels, 3)

    def embed(self, noise: Tensor, labels: Tensor | None) -> Tensor:
        if self.map_noise is None:
            emb = noise.new_zeros(noise.shape[0], self.noise)
        else:
            emb = self.map_noise(noise).to(self.map_layer0.weight.dtype)
        if self.adm:
            emb = self.map_layer1(F.silu(self.map_layer0(emb)))
            return F.silu(emb if self.map_label is None else emb + self.map_label(labels))
        if self.map_noise is not None:
            cosines, sines = emb.chunk(2, dim=1)
            emb = torch.cat([sines, cosines], 1)
        if self.map_label is not None:
            assert labels is not None
            emb = emb + self.map_label(labels * math.sqrt(self.label_dim))
        return F.silu(self.map_layer1(F.silu(self.map_layer0(emb))))

    def forward(self, x: Tensor, noise: Tensor, labels: Tensor | None = None) -> Tensor:
        """x [N, C, H, W], noise [N], labels [N, label_dim] one-hot -> [N, C, H, W]."""
        emb, aux = self.embed(noise, labels), x
        skips: list[Tensor] = []
        for name, layer in self.enc.items():
            if name.endswith("aux_down"):
                aux = layer(aux)
            elif name.endswith("aux_skip"):
                x = skips[-1] = x + layer(aux)
            elif name.endswith("aux_residual"):
                x = skips[-1] = aux = (layer(aux) + x) * math.sqrt(0.5)
            else:
                x = layer(x) if name.endswith("_conv") else layer(x, emb)
                skips.append(x)
        image: Tensor | None = None
        for name, layer in self.dec.items():
            if name.endswith("aux_up"):
                image = layer(image)
            elif name.endswith("aux_norm"):
                features = layer(x)
            elif name.endswith("aux_conv"):
                image = layer(features) if image is None else layer(features) + image
            else:
                x = layer(x if x.shape[1] == layer.cin else torch.cat([x, skips.pop()], 1), emb)
        if self.adm:
            image = self.out_conv(self.out_norm(x))
        assert image is not None
        return image


def build_plain(
    *,
    model_type: str,
    img_resolution: int,
    img_channels: int,
    label_dim: int = 0,
    model_channels: int = 128,
    channel_mult: Sequence[int] = (1, 2, 2, 2),
    channel_mult_emb: int = 4,
    num_blocks: int = 4,
    attn_resolutions: Sequence[int] = (16,),
    embedding_type: str = "positional",
    channel_mult_noise: int = 1,
    encoder_type: str = "standard",
    decoder_type: str = "standard",
    resample_filter: Sequence[int] = (1, 1),
) -> UNet:
    """The U-Net of fasttrain's network settings, in eval mode, with weights to be loaded."""
    return UNet(
        adm=model_type == "DhariwalUNet",
        size=img_resolution,
        channels=img_channels,
        label_dim=label_dim,
        width=model_channels,
        mult=channel_mult,
        mult_emb=channel_mult_emb,
        blocks=num_blocks,
        attention=attn_resolutions,
        embedding=embedding_type,
        mult_noise=channel_mult_noise,
        encoder=encoder_type,
        decoder=decoder_type,
        taps=resample_filter,
    ).eval()
