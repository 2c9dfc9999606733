"""Settings of every training that turns a diffusion model into a few-step generator."""

from __future__ import annotations

from typing import Any

from pydantic import PositiveFloat, ValidationError, model_validator

from fasttrain.settings.adapt import AdaptSettings
from fasttrain.settings.base import FewStep, FreezeLevel, GradientThrough, InitPath
from fasttrain.settings.network import NetworkSettings
from fasttrain.settings.run import OptimizerSettings, RunSettings

__all__ = ["GeneratorSettings"]


class GeneratorSettings(RunSettings):
    """A training that begins with a diffusion model and ends with a few-step generator."""

    init: InitPath
    """The diffusion model to start from: a run directory of `fasttrain pretrain`, a model file
    (.safetensors, or an unmodified EDM checkpoint), or a name that `fasttrain models` lists."""
    freeze: FreezeLevel = 1
    """`none` is D2O; 1, 2 and 3 freeze increasingly many layers: D2O-F. For comparison,
    `all-but-1` trains what level 1 freezes, `all-but-norms` the norms alone. With adapters, see
    `adapt.besides`."""
    adapt: AdaptSettings | None = None
    """Adapters, which then train in the place of the weights."""
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

    @property
    def freezing(self) -> FreezeLevel:
        return self.freeze

    @property
    def adaptation(self) -> AdaptSettings | None:
        return self.adapt

    @property
    def few_step(self) -> FewStep:
        return FewStep(self.sigma, self.sigma_mid, self.gradient_through)

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
    def _in_between(self) -> GeneratorSettings:
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
    def _has_no_augment_labels(self) -> GeneratorSettings:
        if self.network.augment_dim:
            raise ValueError(
                "network.augment_dim: fine-tuning has no augmentation labels; remove it (a "
                "diffusion model's weights for them are dropped)"
            )
        return self
