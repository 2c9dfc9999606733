"""What a network predicts, and what it is told of the noise: the row of the preconditioning table
that a model was trained under, with its constants."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from fasttrain.settings.base import Settings

__all__ = ["Betas", "Kind", "PredictionSettings", "Time"]

Kind = Literal["edm", "epsilon", "score", "v", "x0", "flow", "reverse_flow"]
Time = Literal["log", "steps", "vp", "iddpm", "half_log", "half", "angle", "flow", "reverse_flow"]
Betas = Literal["linear", "scaled_linear", "cosine", "sigmoid"]

TIMES: dict[Kind, Time] = {
    "edm": "log",
    "epsilon": "steps",
    "score": "half_log",
    "v": "steps",
    "x0": "steps",
    "flow": "flow",
    "reverse_flow": "reverse_flow",
}
"""What each kind is told unless something else is said."""
SCALES: dict[Time, float] = {"log": 0.25}


class PredictionSettings(Settings):
    """What F predicts; EDM's by default. Noise levels s are EDM's: x_t / alpha_t = x0 + s e."""

    kind: Kind = "edm"
    """`edm`: EDM's mixture of image and noise; `epsilon`: the noise e; `score`: -e, of an image
    that is not scaled; `v`: alpha e - sigma x0; `x0`: the image; `flow`: e - x0; `reverse_flow`:
    x0 - e, whose time runs to the image."""
    time: Time | None = None
    """What F is told: `log`: ln s; `steps`: the time step of a discrete schedule; `vp`: of
    score_sde's continuous one; `iddpm`: of EDM's wrapper of iDDPM; `half_log`: ln(s / 2); `half`:
    s / 2; `angle`: (2 / pi) atan s; `flow`: s / (1 + s); `reverse_flow`: 1 / (1 + s). None: the
    first that the kind is known with."""
    scale: PositiveFloat | None = None
    """Times this; None: 1/4 of `log`, else 1."""
    sigma_data: PositiveFloat = 0.5
    """Deviation of the data, for `edm`."""
    eps: NonNegativeFloat | None = None
    """Noise level where an `edm` network gives its input back. None: 0.002 of a one-step generator
    (D2O, consistency models), 0 of a diffusion model."""
    sigma_min: PositiveFloat | None = None
    sigma_max: PositiveFloat | None = None
    """The noise levels it was trained on; None: those of its schedule, or all."""
    steps: PositiveInt = Field(1000, le=100_000)
    betas: Betas = "linear"
    beta_start: PositiveFloat = Field(0.0001, lt=1)
    beta_end: PositiveFloat = Field(0.02, lt=1)
    zero_snr: bool = False
    """Whether the schedule is rescaled so that its last step is noise alone (arXiv 2305.08891)."""
    vp_beta_d: PositiveFloat = 19.9
    vp_beta_min: PositiveFloat = 0.1
    learned_variance: bool = False
    """Whether F has as many channels again, for a variance that is not used here."""

    @property
    def input(self) -> Time:
        """What F is told."""
        return self.time or TIMES[self.kind]

    @property
    def factor(self) -> float:
        """And times what."""
        return self.scale or SCALES.get(self.input, 1.0)

    @model_validator(mode="after")
    def _ordered(self) -> PredictionSettings:
        low, high = self.sigma_min, self.sigma_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"sigma_min {low:g} is not below sigma_max {high:g}")
        return self
