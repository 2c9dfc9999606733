"""The settings of a run: frozen, typed, keyword-only, each with a docstring.

`fasttrain.settings.recipes` reads them from recipes::

    settings = load_settings("digits-d2o-f", ["r1.gamma=0.1"], FinetuneSettings)
    settings.r1.gamma
"""

from __future__ import annotations

from typing import Literal

from pydantic import (
    Field,
    PositiveFloat,
    model_validator,
)

from fasttrain.settings.base import AUGMENT_DIM
from fasttrain.settings.gan import GanSettings
from fasttrain.settings.generator import GeneratorSettings
from fasttrain.settings.run import OptimizerSettings, RunSettings

__all__ = ["FinetuneSettings", "PretrainSettings"]


class PretrainSettings(RunSettings):
    """Diffusion training with the EDM loss."""

    task: Literal["pretrain"]
    """The command that the recipe is for."""
    optimizer: OptimizerSettings
    p_mean: float = -1.2
    """Mean of ln sigma."""
    p_std: PositiveFloat = 1.2
    """Standard deviation of ln sigma."""
    augment: float = Field(0.0, ge=0, le=1)
    """Probability of each transformation of EDM's non-leaky augmentation; mirroring has probability
    1/2 whenever this is not 0. The network receives the transformations as labels (augment_dim
    9)."""

    @model_validator(mode="after")
    def _has_labels(self) -> PretrainSettings:
        if self.augment and self.network.augment_dim != AUGMENT_DIM:
            raise ValueError(
                f"augment={self.augment} would leak into generated images: the network needs "
                f"{AUGMENT_DIM} augmentation labels; set network.augment_dim={AUGMENT_DIM}"
            )
        return self


class FinetuneSettings(GeneratorSettings, GanSettings):
    """D2O: GAN fine-tuning turns a diffusion model into a one-step generator."""

    task: Literal["finetune"]
    """The command that the recipe is for."""

    def process_counts(self) -> list[int]:
        """Numbers with whole groups of batch norm on each process, or equal parts of one group."""
        return self.divides(self.batch, super().process_counts())

    @model_validator(mode="after")
    def _groups_divide(self) -> FinetuneSettings:
        self.check_groups(self.batch, self.micro_batch)
        return self
