"""Latents: what decodes them, and the numbers by which a network sees them."""

from __future__ import annotations

from pydantic import FiniteFloat, PositiveFloat, model_validator

from fasttrain.settings.base import DataPath, Settings, UserPath

__all__ = ["LatentSettings"]


class LatentSettings(Settings):
    """A run on latents, as `fasttrain encode` writes them, in the place of images."""

    vae: UserPath
    """Their autoencoder, which decodes pictures and what is evaluated: a folder as diffusers has it
    (AutoencoderKL or VQModel), or a file of latent-diffusion's."""
    pictures: DataPath | None = None
    """Shard set of the images that they are of, which evaluations and reports compare with; without
    it a run on latents needs `evaluate.every=null`."""
    scale: tuple[PositiveFloat, ...] | None = None
    """Channel by channel, the network sees scale * latent + bias. Default: the autoencoder's own
    scaling. Models of others have constants of their own: `fasttrain import FILE --network` writes
    them."""
    bias: tuple[FiniteFloat, ...] | None = None
    """As `scale`; both or none."""

    @model_validator(mode="after")
    def _both(self) -> LatentSettings:
        if (self.scale is None) != (self.bias is None) or len(self.scale or ()) != len(
            self.bias or ()
        ):
            raise ValueError("scale and bias: set both, with a number for each channel, or none")
        return self
