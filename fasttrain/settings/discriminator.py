"""The discriminator, its feature networks, and the gradient penalty."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from fasttrain.settings.base import Augmentation, Settings, UserPath
from fasttrain.settings.registry import BACKBONES
from fasttrain.settings.run import OptimizerSettings

if TYPE_CHECKING:
    BackboneName = str
else:
    BackboneName = Literal[tuple(BACKBONES)]


class BackboneSettings(Settings):
    """One frozen feature network of the discriminator."""

    name: BackboneName = "lite0"
    """EfficientNet-Lite0, VGG16-BN or DeiT-B."""
    resolution: PositiveInt = Field(default=224, multiple_of=32)
    """Smaller images are resized to this; larger ones are not resized."""
    weights: Literal["random"] | UserPath | None = None
    """A file of pretrained weights or its folder. Default: the folder that FASTTRAIN_WEIGHTS names
    (lite0: its package). `random`: untrained features, for speed measurements."""


class DiscriminatorSettings(Settings):
    """The projected discriminator: frozen features, random mixing, trained heads."""

    backbones: tuple[BackboneSettings, ...] = Field((BackboneSettings(),), min_length=1)
    channels: PositiveInt = 64
    """Width of the random mixing at the largest map."""
    resolutions: tuple[Literal[4, 8, 16, 32, 64, 128, 256, 512], ...] = Field(
        (128, 64, 32, 16), min_length=1, max_length=4
    )
    """Nominal size of each projected map, largest first, which determines how often its head halves
    it; with fewer than four, the smallest maps have no head."""
    width: PositiveInt = 512
    """Channels of a head's last map, at nominal size 8; halved with each doubling of the size."""
    norm_group: PositiveInt = 16
    """Consecutive images of a batch that share the statistics of batch norm. Processes with fewer
    images share a group; the number of images of each must then divide it."""
    class_embedding: Literal["class_means", "random"] | UserPath = "class_means"
    """Initial values of each head's class embedding: mean features of the classes (those that
    `fasttrain class-features` stored beside the data, else of a few hundred images a class), a file
    of its `--out`, or normal noise."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of images, features and the heads' activations; the heads' parameters and exact R1
    stay float32. `auto`: bfloat16 on a GPU, float32 elsewhere."""
    augment: tuple[Augmentation, ...] = ()
    """Differentiable augmentation of all images that the discriminator sees."""
    optimizer: OptimizerSettings

    @model_validator(mode="after")
    def _of_several(self) -> DiscriminatorSettings:
        if self.norm_group == 1:
            raise ValueError(
                "norm_group: 1 would normalise each image by itself, which is not batch norm: set "
                "it to 2 at least"
            )
        return self

    @model_validator(mode="after")
    def _distinct(self) -> DiscriminatorSettings:
        names = [backbone.name for backbone in self.backbones]
        if len(set(names)) != len(names):
            raise ValueError(f"backbones: {', '.join(names)}: name each one once")
        return self


class R1Settings(Settings):
    """The gradient penalty on real images."""

    kind: Literal["exact", "approximated"] = "exact"
    """`exact`: lazy R1, gamma / 2 * interval * |gradient of D|^2 in a step of its own, in float32.
    `approximated`: weight * (D(x) - D(x + noise of deviation sigma))^2 in every discriminator step,
    without a double backward."""
    gamma: NonNegativeFloat = 0.0
    """Strength of exact R1; 0: none."""
    interval: PositiveInt = 16
    """Iterations between two steps of exact R1."""
    weight: NonNegativeFloat = 100.0
    """Strength of approximated R1."""
    sigma: PositiveFloat = 0.01
    """Standard deviation of the noise, in units of the images' [-1, 1]. Below 0.05 the difference
    would be mostly bfloat16's rounding, so the penalty's two passes run in float32."""

    @property
    def lazy_interval(self) -> int | None:
        """Iterations between two steps of exact R1, or None."""
        return self.interval if self.kind == "exact" and self.gamma else None

    @model_validator(mode="after")
    def _known(self) -> R1Settings:
        if self.kind == "exact" and "gamma" not in self.model_fields_set:
            raise ValueError("gamma: set the strength of exact R1, 0 for none")
        return self
