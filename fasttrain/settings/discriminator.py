"""The discriminator, its feature networks, and the gradient penalties."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import (
    Field,
    FiniteFloat,
    NonNegativeFloat,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from fasttrain.settings.base import Augmentation, Settings, UserPath
from fasttrain.settings.decay import DecaySettings
from fasttrain.settings.registry import BACKBONES
from fasttrain.settings.run import OptimizerSettings

if TYPE_CHECKING:
    BackboneName = str
else:
    BackboneName = Literal[(*BACKBONES, "self")]


class BackboneSettings(Settings):
    """One feature network of the discriminator, frozen but for `train`."""

    name: BackboneName = "lite0"
    """EfficientNet-Lite0, VGG16-BN or DeiT-B; DINO's ViT-S/16 or DINOv2's ViT-S/14, which see
    random crops of larger images, and whose four maps of one size the heads see unmixed; or
    `self`, the diffusion model that the generator began as, which needs no other weights and sees
    latents as they are: `resolution` is the network's then."""
    resolution: PositiveInt = Field(default=224, multiple_of=32)
    """Smaller images are resized to this; larger ones are not resized."""
    weights: Literal["random"] | UserPath | None = None
    """A file of pretrained weights or its folder. Default: the folder that FASTTRAIN_WEIGHTS names
    (lite0: its package). `random`: untrained features, for speed measurements."""
    noise: tuple[FiniteFloat, PositiveFloat] = (0.0, 1.0)
    """Of `self`: mean and standard deviation of ln sigma, the noise level of what it sees."""
    train: bool = False
    """Of `self`: whether it trains with its heads, as in adversarial post-training (APT); its
    penalties must be approximated ones."""

    @model_validator(mode="after")
    def _trains_itself(self) -> BackboneSettings:
        if self.train and self.name != "self":
            raise ValueError(f"train: {self.name} stays frozen; only self may train")
        return self


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
    conditional: bool = True
    """Whether the heads judge an image as one of its class. False: they do not see the class, and
    only the generator does."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision of images, features and the heads' activations; the heads' parameters and exact R1
    stay float32. `auto`: bfloat16 on a GPU; on a CPU the faster one, by a measurement."""
    augment: tuple[Augmentation, ...] = ()
    """Differentiable augmentation of all images that the discriminator sees."""
    optimizer: OptimizerSettings

    @property
    def trains_features(self) -> bool:
        """Whether a feature network trains with the heads."""
        return any(backbone.train for backbone in self.backbones)

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


class PenaltySettings(Settings):
    """A gradient penalty: on real images (R1) or on generated ones (R2)."""

    kind: Literal["exact", "approximated"] = "exact"
    """`exact`: lazy, gamma / 2 * interval * |gradient of D|^2 in a step of its own, in float32.
    `approximated`: weight * (D(x) - D(x + noise of deviation sigma))^2 in every discriminator step,
    without a double backward."""
    gamma: NonNegativeFloat = 0.0
    """Strength of the exact penalty; 0: none."""
    inputs: Literal["images", "features"] = "images"
    """With respect to what the exact penalty's gradient is: the images (or latents), or the maps
    that the heads see, without a second derivative of feature networks."""
    features: Literal["float32", "tf32", "bfloat16"] = "float32"
    """What the feature networks compute the exact penalty in; the heads stay float32. `tf32` is for
    a GPU's tensor cores, and float32 elsewhere. The errors stand in docs/performance.md."""
    interval: PositiveInt = 16
    """Iterations between two steps of exact penalties."""
    weight: NonNegativeFloat = 100.0
    """Strength of the approximated penalty."""
    sigma: PositiveFloat = 0.01
    """Standard deviation of the noise, in units of the images' [-1, 1]. Below 0.05 the difference
    would be mostly bfloat16's rounding, so the penalty's two passes run in float32."""
    share: float = Field(default=1.0, gt=0, le=1)
    """Fraction of the images that are penalised, 1 / k: every k-th group of `norm_group` images.
    The penalty stays a mean, over these."""
    decay: DecaySettings = DecaySettings()
    """Schedule of gamma, or of weight."""

    @property
    def lazy_interval(self) -> int | None:
        """Iterations between two steps of the exact penalty, or None."""
        return self.interval if self.kind == "exact" and self.gamma else None

    @property
    def approximates(self) -> bool:
        """Whether a finite difference is part of every discriminator step."""
        return self.kind == "approximated" and self.weight > 0

    @property
    def one_in(self) -> int:
        """One group of images in this many is penalised."""
        return round(1 / self.share)

    @model_validator(mode="after")
    def _known(self) -> PenaltySettings:
        if self.kind == "exact" and "gamma" not in self.model_fields_set:
            raise ValueError("gamma: set the strength of the exact penalty, 0 for none")
        if self.kind != "exact" and self.inputs != "images":
            raise ValueError("inputs: only the exact penalty has a choice; remove it")
        if self.kind != "exact" and self.features != "float32":
            raise ValueError("features: only the exact penalty has a choice; remove it")
        if abs(self.share * self.one_in - 1) > 1e-6:
            raise ValueError(f"share: {self.share} is not 1 / k: set it to 1, 0.5, 0.25, ...")
        return self
