"""Images to latents and back, for everything that looks at images.

    decoder = Decoder(info.latents, Path("vaes/sd-vae-ft-mse"))
    images = decoder(latents)                       # of a network, in [-1, 1]
    encode(path, out, LatentEncoder(vae, device))   # `fasttrain encode`

A preconditioned network has its decoder as the attribute `decoder`; images by seed go through it
(`fasttrain.sampling.generate`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fasttrain.models.files.families.foreign import Latents
from fasttrain.models.files.vae import VAE, decode, load_vae
from fasttrain.system.errors import UserError
from fasttrain_data.errors import DataError
from fasttrain_data.index import LatentInfo

__all__ = ["Decoder", "LatentEncoder", "scaling"]

BATCH = 16
"""Images that are decoded at once: at 256 pixels a decoder's largest map takes 32 MB an image."""


def scaling(
    info: LatentInfo, channels: int, scale: tuple[float, ...] | None, bias: tuple[float, ...] | None
) -> Latents:
    """From a network's numbers to the decoder's: by the constants of a recipe, else by the
    autoencoder's own. Raises UserError for another number of channels."""
    if scale is None or bias is None:
        scale, bias = (info.scale,) * channels, (-info.shift * info.scale,) * channels
    if len(scale) != channels:
        raise UserError(f"latents.scale has {len(scale)} numbers, the latents {channels} channels")
    return Latents(tuple(scale), tuple(bias), float(info.low))


@dataclass(frozen=True)
class Decoder:
    """Decodes what a network makes; the autoencoder is read at the first use.

    path: its folder or file; None: nobody has said.
    """

    latents: Latents
    path: Path | None

    @cached_property
    def vae(self) -> VAE:
        """Raises UserError when there is none, or none that fits."""
        if self.path is None:
            raise UserError("the model makes latents: name their autoencoder with --vae PATH")
        return load_vae(self.path)

    @property
    def factor(self) -> int:
        """Pixels a side of an image over those of its latents."""
        return self.vae.network.factor

    def __call__(self, latents: Tensor) -> Tensor:
        """Latents [N, C', H', W'] -> images [N, C, H, W] in [-1, 1], float32, unclipped.
        Differentiable twice."""
        weight = self.vae.network.decoder.conv_in.weight
        if weight.device != latents.device:
            self.vae.network.to(latents.device)
        parts = latents.float().split(BATCH)
        return torch.cat([decode(self.vae, part, self.latents) for part in parts])


class LatentEncoder:
    """What `fasttrain_data.encoding.encode` calls.

    flips: whether the mirror images are encoded, too: encoding does not commute with mirroring.
    low: black as the autoencoder sees it; EDM2's models were trained with 0.
    """

    def __init__(
        self, vae: VAE, device: torch.device, *, flips: bool = False, low: Literal[-1, 0] = -1
    ) -> None:
        self.vae, self.device, self.flips, self.low = vae, device, flips, low
        vae.network.to(device)

    def layout(self, resolution: int, colours: int) -> tuple[LatentInfo, int, int]:
        network = self.vae.network
        if resolution % network.factor:
            raise DataError(
                f"the images are {resolution}x{resolution}, the autoencoder takes multiples of "
                f"{network.factor}: convert again with another --resolution, and --force"
            )
        if network.in_channels not in (1, 3) or colours > network.in_channels:
            raise DataError(
                f"the images have {colours} channels, the autoencoder takes {network.in_channels}"
            )
        info = LatentInfo(
            scale=self.vae.scale,
            shift=self.vae.shift,
            low=self.low,
            flips=self.flips,
            resolution=resolution,
            colours=1 if network.in_channels == 1 else 3,
            vae_sha256=self.vae.sha256,
        )
        return info, network.latent_channels, resolution // network.factor

    @torch.no_grad()
    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        images = torch.from_numpy(pixels).to(self.device).permute(0, 3, 1, 2).float()
        images = (images / 255) * (1 - self.low) + self.low
        images = images.expand(-1, self.vae.network.in_channels, -1, -1)
        parts = list(self.vae.network.encode(images))
        if self.flips:
            parts += self.vae.network.encode(images.flip(-1))
        made: npt.NDArray[np.float32] = torch.cat(parts, dim=1).cpu().numpy()
        return made
