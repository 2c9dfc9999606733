"""The U-Net and its preconditioning."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from fasttrain.settings.base import MAX_BLOCKS, Factor, Settings, Tap
from fasttrain.settings.prediction import PredictionSettings
from fasttrain.settings.registry import NETWORKS

__all__ = ["NetworkSettings"]

if TYPE_CHECKING:
    NetworkName = str
else:
    NetworkName = Literal[tuple(NETWORKS)]

OptionName = Annotated[str, Field(min_length=1, max_length=100)]
Option = bool | int | float | str | tuple[int | float | str, ...]


class NetworkSettings(Settings):
    """The network and its preconditioning; field names are those of the network's constructor,
    which takes some of them."""

    model_type: NetworkName = "SongUNet"
    """Network: `SongUNet` (DDPM++, NCSN++), `DhariwalUNet` (ADM), `EDM2UNet`, `DiT`, or those of
    diffusers, `DiffusersUNet` and `DiffusersTransformer`."""
    img_resolution: PositiveInt = Field(le=8192)
    """Pixels a side of the images."""
    img_channels: PositiveInt = Field(3, le=64)
    """Channels of the images."""
    label_dim: NonNegativeInt = Field(0, le=1_000_000)
    """Number of classes; 0: unconditional."""
    augment_dim: NonNegativeInt = Field(0, le=10_000)
    """Width of the augmentation labels; 0: none."""
    model_channels: PositiveInt = Field(128, multiple_of=4, le=16_384)
    """Channels at the full resolution."""
    channel_mult: tuple[Factor, ...] = Field((1, 2, 2, 2), min_length=1, max_length=16)
    """Channels of each level, in multiples of model_channels; each level halves the resolution."""
    channel_mult_emb: Factor = 4
    """Width of the embedding, in multiples of model_channels."""
    num_blocks: PositiveInt = 4
    """Residual blocks of a level; the decoder has one more."""
    attn_resolutions: tuple[PositiveInt, ...] = (16,)
    """Resolutions with self-attention."""
    dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of the blocks in pre-training."""
    label_dropout: float = Field(0.0, ge=0, lt=1)
    """Dropout of whole class labels, for classifier-free guidance."""
    embedding_type: Literal["positional", "fourier", "zero"] = "positional"
    """Embedding of the noise level (SongUNet only)."""
    channel_mult_noise: Factor = 1
    """Width of the noise level's embedding, in multiples of model_channels (SongUNet only)."""
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    """Path of the image in the encoder (SongUNet only)."""
    decoder_type: Literal["standard", "skip"] = "standard"
    """Path of the image in the decoder (SongUNet only)."""
    resample_filter: tuple[Tap, ...] = Field((1, 1), min_length=2, max_length=32)
    """Taps of the filter for halving and doubling (SongUNet only)."""
    prediction: PredictionSettings = PredictionSettings()
    """Output of the network and its preconditioning; EDM's by default. `fasttrain import` fills it
    in."""
    options: dict[OptionName, Option] = Field(default_factory=dict, max_length=32)
    """Further arguments of the network's constructor, without a field above. The
    published networks have none."""

    @model_validator(mode="after")
    def _bounded(self) -> NetworkSettings:
        if len(self.channel_mult) * (self.num_blocks + 2) > MAX_BLOCKS:
            raise ValueError(f"the network has more than {MAX_BLOCKS} blocks")
        return self
