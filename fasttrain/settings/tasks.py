"""The settings of a run: frozen, typed, keyword-only, each with a docstring.

`fasttrain.settings.recipes` reads them from recipes::

    settings = load_settings("digits-d2o-f", ["r1.gamma=0.1"], FinetuneSettings)
    settings.r1.gamma
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from pydantic import (
    Field,
    PositiveFloat,
    ValidationError,
    model_validator,
)

from fasttrain.settings.base import AUGMENT_DIM, FewStep, FreezeLevel, GradientThrough, InitPath
from fasttrain.settings.discriminator import DiscriminatorSettings, R1Settings
from fasttrain.settings.network import NetworkSettings
from fasttrain.settings.registry import LOSSES
from fasttrain.settings.run import OptimizerSettings, RunSettings

__all__ = ["FinetuneSettings", "PretrainSettings"]

if TYPE_CHECKING:
    LossName = str
else:
    LossName = Literal[tuple(LOSSES)]


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

    @model_validator(mode="before")
    @classmethod
    def _evaluates_on_request(cls, values: Any) -> Any:
        """A diffusion model's images take 35 evaluations each, so none are made unasked."""
        wanted = values.get("evaluate", {}) if isinstance(values, dict) else None
        if not isinstance(wanted, dict) or "every" in wanted:
            return values
        return values | {"evaluate": {"every": None, **wanted}}

    @model_validator(mode="after")
    def _has_labels(self) -> PretrainSettings:
        if self.augment and self.network.augment_dim != AUGMENT_DIM:
            raise ValueError(
                f"augment={self.augment} would leak into generated images: the network needs "
                f"{AUGMENT_DIM} augmentation labels; set network.augment_dim={AUGMENT_DIM}"
            )
        return self


class FinetuneSettings(RunSettings):
    """D2O: GAN fine-tuning turns a diffusion model into a one-step generator."""

    task: Literal["finetune"]
    """The command that the recipe is for."""
    init: InitPath
    """The diffusion model to start from: a run directory of `fasttrain pretrain`, a model file
    (.safetensors, or an unmodified EDM checkpoint), or a name that `fasttrain models` lists."""
    freeze: FreezeLevel = 1
    """`none` is D2O; 1, 2 and 3 freeze increasingly many layers: D2O-F."""
    sigma: PositiveFloat = 80.0
    """Noise level of the single, or the first, step. When it is not set, where the network's family
    starts: 80 of EDM's, 2.5 of those that predict the noise, the noisy end of the others."""
    sigma_mid: PositiveFloat | None = None
    """Noise level of the second step of a two-step generator: the first step's image moves back to
    this level along the line to its latents and is evaluated again. The paper's option is 0.8."""
    gradient_through: GradientThrough = "both"
    """Steps of a two-step generator that receive the image's gradient. `last`: the first step runs
    without, which halves the memory of the generator's step; its noise level then trains only
    because both steps share all weights."""
    generator: OptimizerSettings
    discriminator: DiscriminatorSettings
    r1: R1Settings
    loss: LossName = "non_saturating"
    """Objective of generator and discriminator."""
    reuse_fakes: bool = False
    """Whether the discriminator step judges the generator step's images, from before that step's
    update, instead of new ones: one forward pass less."""

    @property
    def freezing(self) -> FreezeLevel:
        return self.freeze

    @property
    def few_step(self) -> FewStep:
        return FewStep(self.sigma, self.sigma_mid, self.gradient_through)

    def process_counts(self) -> list[int]:
        """Numbers with whole groups of batch norm on each process, or equal parts of one group."""
        group = self.discriminator.norm_group
        shares = {n: self.batch // n for n in super().process_counts()}
        return [n for n, share in shares.items() if share % group == 0 or group % share == 0]

    @model_validator(mode="before")
    @classmethod
    def _starts_at(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "sigma" in values:
            return values
        try:
            network = NetworkSettings.model_validate(values.get("network"))
        except ValidationError:  # said of the network itself
            return values
        return values | {"sigma": network.prediction.start}

    @model_validator(mode="after")
    def _in_between(self) -> FinetuneSettings:
        if self.sigma_mid is not None and self.sigma_mid >= self.sigma:
            raise ValueError(
                f"sigma_mid {self.sigma_mid} is not below sigma {self.sigma}; choose it between 0 "
                f"and sigma"
            )
        if self.sigma_mid is None and self.gradient_through == "last":
            raise ValueError("gradient_through: last is for two steps; set sigma_mid, too")
        both = self.sigma_mid is not None and self.gradient_through == "both"
        if both and self.engine.zero_stage == 3:
            raise ValueError(
                "gradient_through: ZeRO 3 cannot take the gradient of weights that were used twice "
                "in one backward pass; set it to last, or engine.zero_stage to 2 at most"
            )
        return self

    @model_validator(mode="after")
    def _has_no_augment_labels(self) -> FinetuneSettings:
        if self.network.augment_dim:
            raise ValueError(
                "network.augment_dim: fine-tuning has no augmentation labels; remove it (a "
                "diffusion model's weights for them are dropped)"
            )
        return self

    @model_validator(mode="after")
    def _groups_divide(self) -> FinetuneSettings:
        group = self.discriminator.norm_group
        for name, size in (("batch", self.batch), ("micro_batch", self.micro_batch)):
            if size is not None and size % group:
                raise ValueError(
                    f"discriminator.norm_group {group} does not divide {name} {size}; "
                    f"set discriminator.norm_group to a divisor of it"
                )
        return self
