"""What a network predicts, and what it is told of the noise: the row of the preconditioning table
that a model was trained under, with its constants."""

from __future__ import annotations

import math
from typing import Literal

from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt, model_validator

from fasttrain.settings.base import Settings
from fasttrain.settings.schedules import END, Betas, discrete_levels, iddpm_levels, vp_sigma

__all__ = ["Kind", "PredictionSettings", "Time"]

Kind = Literal["edm", "epsilon", "score", "v", "x0", "flow", "reverse_flow"]
Time = Literal[
    "log",
    "steps",
    "vp",
    "edm_vp",
    "iddpm",
    "half_log",
    "half",
    "angle",
    "flow",
    "reverse_flow",
]

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
EDM_START = 80.0
EPSILON_START = 2.5
"""s0 of models whose error is multiplied by s: SiD's, found for EDM's and for latent models alike
(arXiv 2404.04057, 2406.01561)."""


class PredictionSettings(Settings):
    """What F predicts; EDM's by default. Noise levels s are EDM's: x_t / alpha_t = x0 + s e."""

    kind: Kind = "edm"
    """`edm`: EDM's mixture of image and noise; `epsilon`: the noise e; `score`: -e, of an image
    that is not scaled; `v`: alpha e - sigma x0; `x0`: the image; `flow`: e - x0; `reverse_flow`:
    x0 - e, whose time runs to the image."""
    time: Time | None = None
    """What F is told: `log`: ln s; `steps`: the time step of a discrete schedule; `vp`: of
    score_sde's continuous one; `edm_vp`: the same as EDM's wrapper rounds it; `iddpm`: of EDM's
    wrapper of iDDPM; `half_log`: ln(s / 2); `half`: s / 2; `angle`: (2 / pi) atan s; `flow`:
    s / (1 + s); `reverse_flow`: 1 / (1 + s). None: the first that the kind is known with."""
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
    steps: PositiveInt = Field(default=1000, le=100_000)
    betas: Betas = "linear"
    beta_start: PositiveFloat = Field(default=0.0001, lt=1)
    beta_end: PositiveFloat = Field(default=0.02, lt=1)
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

    @property
    def is_edm(self) -> bool:
        """Whether this is EDM's own row, whatever its range and deviation."""
        return self.kind == "edm" and self.input == "log" and self.factor == SCALES["log"]

    @property
    def levels(self) -> tuple[float, ...]:
        """The noise levels of a schedule of steps; of `iddpm`, which has one more, falling."""
        if self.input == "iddpm":
            return iddpm_levels(self.steps)
        if self.input != "steps":
            return ()
        ends = (self.beta_start, self.beta_end)
        return discrete_levels(self.betas, self.steps, *ends, zero_snr=self.zero_snr)

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest noise level; `END` stands for an infinite one."""
        low, high = 0.0, math.inf
        if self.input in ("steps", "iddpm"):
            positive = [level for level in self.levels if level > 0]
            low, high = min(positive), max(positive)
        elif self.input in ("vp", "edm_vp"):
            low, high = (vp_sigma(t, self.vp_beta_d, self.vp_beta_min) for t in (1e-5, 1.0))
        elif self.input in ("half", "half_log"):
            low, high = 0.02, 100.0
        elif self.input in ("flow", "reverse_flow", "angle"):
            high = END
        return self.sigma_min or low, self.sigma_max or high

    @property
    def start(self) -> float:
        """s0, the noise level that a one-step generator starts at: the noisy end, where F's error
        is not amplified there, else `EPSILON_START`, at a step of the schedule."""
        highest = self.range[1]
        if self.kind == "edm":
            return min(EDM_START, highest)
        if self.kind not in ("epsilon", "score"):
            return min(highest, END)
        if self.input != "steps":
            return min(EPSILON_START, highest)
        return min(self.levels, key=lambda level: abs(math.log(level / EPSILON_START)))

    @model_validator(mode="after")
    def _ordered(self) -> PredictionSettings:
        low, high = self.sigma_min, self.sigma_max
        if low is not None and high is not None and low >= high:
            raise ValueError(f"sigma_min {low:g} is not below sigma_max {high:g}")
        return self
