"""The discriminator, its feature networks, and the gradient penalty."""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from fasttrain.settings.base import Augmentation, Settings, UserPath
from fasttrain.settings.run import OptimizerSettings


class BackboneSettings(Settings):
    """One frozen feature network of the discriminator."""

    name: Literal["lite0", "vgg16_bn", "deit_base_distilled"] = "lite0"
    resolution: PositiveInt = Field(default=224, multiple_of=32)
    """Smaller images are resized to this; larger ones are taken as they are."""
    weights: Literal["random"] | UserPath | None = None
    """A file of pretrained weights or a folder with it; without, the folder that FASTTRAIN_WEIGHTS
    names (lite0: its package). `random`: untrained features, for speed measurements."""


class DiscriminatorSettings(Settings):
    """The projected discriminator: frozen features, random mixing, trained heads."""

    backbones: tuple[BackboneSettings, ...] = Field((BackboneSettings(),), min_length=1)
    channels: PositiveInt = 64
    """Width of the random mixing at the largest map."""
    resolutions: tuple[Literal[4, 8, 16, 32, 64, 128, 256, 512], ...] = Field(
        (128, 64, 32, 16), min_length=1, max_length=4
    )
    """Nominal size of each projected map, from the largest on, which decides how often its head
    halves it; with fewer than four, the smallest maps have no head."""
    width: PositiveInt = 512
    """Channels of a head's last map, at nominal size 8; halved with each doubling of the size."""
    norm_group: PositiveInt = 16
    """Consecutive images of a batch that batch norm takes its statistics over. Processes with fewer
    images each share a group: then their share must divide it."""
    class_embedding: Literal["class_means", "random"] = "class_means"
    """Where each head's class embedding starts: mean features of the classes (those that `fasttrain
    class-features` has stored beside the data, else of a few hundred images a class), or normal
    noise."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of images, features and the heads' activations; the heads' parameters and exact R1 stay
    float32. `auto`: bfloat16 on a GPU; on a CPU whichever a measurement finds faster."""
    augment: tuple[Augmentation, ...] = ()
    """Differentiable augmentation of all images it sees."""
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
    """The gradient penalty on real images. `exact`: lazy R1, every `interval` iterations, gamma/2 *
    interval * penalty, a step of its own, in float32. `approximated`: weight * (D(x) - D(x + noise
    of deviation sigma))^2 in every discriminator step, without a double backward."""

    kind: Literal["exact", "approximated"] = "exact"
    gamma: NonNegativeFloat = 0.0
    interval: PositiveInt = 16
    weight: NonNegativeFloat = 100.0
    sigma: PositiveFloat = 0.01
    """In units of the images' [-1, 1]. Below 0.05 bfloat16 would see little but its own rounding:
    there the penalty's two passes run in float32."""

    @property
    def lazy_interval(self) -> int | None:
        """Iterations between two steps of exact R1, or None."""
        return self.interval if self.kind == "exact" and self.gamma else None

    @model_validator(mode="after")
    def _known(self) -> R1Settings:
        if self.kind == "exact" and "gamma" not in self.model_fields_set:
            raise ValueError("gamma: give the strength of exact R1, 0 for none")
        return self
