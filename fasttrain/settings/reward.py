"""A reward of the generator's images beside its GAN objective."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import PositiveFloat, model_validator

from fasttrain.settings.base import Settings
from fasttrain.settings.discriminator import BackboneSettings
from fasttrain.settings.registry import REWARDS

__all__ = ["RewardSettings"]

if TYPE_CHECKING:
    RewardName = str
else:
    RewardName = Literal[tuple(REWARDS)]


class RewardSettings(Settings):
    """A differentiable reward of generated images."""

    name: RewardName = "own_class"
    """`own_class`: log-probability of the image's own class, by linear discriminant analysis of a
    frozen network's features. See `training/objectives/reward.py`."""
    weight: PositiveFloat
    """Weight beside the generator's GAN loss."""
    features: BackboneSettings = BackboneSettings()
    """That frozen network; another than the one that `evaluate` measures with."""

    @model_validator(mode="after")
    def _of_images(self) -> RewardSettings:
        if self.features.name == "self":
            raise ValueError("features: self is of noised images; name another network")
        return self
