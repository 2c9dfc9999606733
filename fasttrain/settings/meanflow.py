"""Settings of MeanFlow training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, model_validator

from fasttrain.settings.base import FreezeLevel
from fasttrain.settings.tasks import BesideGanSettings

__all__ = ["MeanFlowSettings"]


class MeanFlowSettings(BesideGanSettings):
    """MeanFlow: a diffusion model learns the average velocity of its trajectories, which takes one
    step from their start to their end; a start of fine-tuning, or an end. See
    `training/objectives/meanflow.py`."""

    task: Literal["meanflow"]
    """The command that the recipe is for."""
    freeze: FreezeLevel = "none"
    """What does not train: by default nothing, as in the paper."""
    p_mean: float = -0.4
    """Mean of ln sigma at both ends of an interval, which makes a flow's time logit-normal. The
    paper's."""
    p_std: PositiveFloat = 1.0
    """Standard deviation of ln sigma there."""
    share: float = Field(default=0.25, ge=0, le=1)
    """Fraction of the images whose interval has a length; the others learn the velocity itself.
    Each costs a forward-mode pass."""
    power: NonNegativeFloat = 1.0
    """Power of an image's own squared error that its loss is divided by. 0: plain squares."""

    @property
    def second_time(self) -> float:
        return self.sigma / (1 + self.sigma)

    @model_validator(mode="after")
    def _in_one_step(self) -> MeanFlowSettings:
        if self.sigma_mid is not None:
            raise ValueError("sigma_mid: the average velocity is learnt for one step; remove it")
        return self

    @model_validator(mode="after")
    def _differentiates_forward(self) -> MeanFlowSettings:
        if self.engine.zero_stage == 3:
            raise ValueError(
                "engine.zero_stage: ZeRO 3 gathers weights by hooks that forward-mode derivatives "
                "do not pass; set it to 2 at most"
            )
        if self.compile:
            raise ValueError(
                "compile: a compiled network has no forward-mode derivatives; set it to false"
            )
        if self.network.prediction.input == "iddpm":
            raise ValueError(
                "network.prediction.time: iddpm's networks know single noise levels, along which "
                "nothing is differentiated"
            )
        return self
