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
    img_resolution: PositiveInt = Field(le=8192)
    img_channels: PositiveInt = Field(3, le=64)
    label_dim: NonNegativeInt = Field(0, le=1_000_000)
    augment_dim: NonNegativeInt = Field(0, le=10_000)
    model_channels: PositiveInt = Field(128, multiple_of=4, le=16_384)
    channel_mult: tuple[Factor, ...] = Field((1, 2, 2, 2), min_length=1, max_length=16)
    channel_mult_emb: Factor = 4
    num_blocks: PositiveInt = 4
    attn_resolutions: tuple[PositiveInt, ...] = (16,)
    dropout: float = Field(0.0, ge=0, lt=1)
    label_dropout: float = Field(0.0, ge=0, lt=1)
    embedding_type: Literal["positional", "fourier", "zero"] = "positional"
    channel_mult_noise: Factor = 1
    encoder_type: Literal["standard", "skip", "residual"] = "standard"
    decoder_type: Literal["standard", "skip"] = "standard"
    resample_filter: tuple[Tap, ...] = Field((1, 1), min_length=2, max_length=32)
    prediction: PredictionSettings = PredictionSettings()
    options: dict[OptionName, Option] = Field(default_factory=dict, max_length=32)
    """Arguments of the network's constructor that none of the fields above is named for. The
    published networks have none."""

    @model_validator(mode="after")
    def _bounded(self) -> NetworkSettings:
        if len(self.channel_mult) * (self.num_blocks + 2) > MAX_BLOCKS:
            raise ValueError(f"the network has more than {MAX_BLOCKS} blocks")
        return self
