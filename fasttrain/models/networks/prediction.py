"""The preconditioning table: from what a network F predicts to an estimate of the image,

    D(y; s) = c_skip y + c_out F(c_in y; c_noise),      y = x_t / alpha_t = x0 + s e.

    kind          F predicts               c_skip                c_out                  c_in
    edm           (Karras et al.)          d^2 / (u^2 + d^2)     u d / sqrt(s^2 + d^2)  1 / sqrt(s^2 + d^2)
    epsilon       e                        1                     -s                     1 / sqrt(1 + s^2)
    score         -e                       1                     s                      1
    v             alpha e - sigma x0       1 / (1 + s^2)         -s / sqrt(1 + s^2)     1 / sqrt(1 + s^2)
    x0            x0                       0                     1                      1 / sqrt(1 + s^2)
    flow          e - x0                   1 / (1 + s)           -s / (1 + s)           1 / (1 + s)
    reverse_flow  x0 - e                   1 / (1 + s)           s / (1 + s)            1 / (1 + s)

with d = sigma_data and u = s - eps (consistency models' and D2O's boundary D(x; eps) = x). c_noise
is one of `fasttrain.settings.prediction.Time`. A network that predicts the image and is told a
flow's time sees what a flow's does. Sources: arXiv 2206.00364 (table 1), 2303.01469 (appendix C),
2202.00512 (v), 2209.03003 (flow).

    row = Prediction(settings.prediction, one_step=True)
    c_skip, c_out, c_in, c_noise = row.coefficients(sigma)
    row.start, row.gain                     # where a one-step generator starts; of F's error there
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fasttrain.models.networks.schedules import END, discrete_levels, iddpm_levels, time_of
from fasttrain.settings.prediction import PredictionSettings

__all__ = ["Prediction"]

Coefficients = tuple[Tensor, Tensor, Tensor]

EPS = 0.002
"""Where a one-step generator of EDM's kind gives its input back."""
EPSILON_START = 2.5
"""s0 of models whose error is multiplied by s: SiD's, found for EDM's and for latent models alike."""
EDM_START = 80.0


def _variance_preserving(s: Tensor) -> Tensor:
    return (1 + s * s).rsqrt()


def _epsilon(s: Tensor) -> Coefficients:
    return torch.ones_like(s), -s, _variance_preserving(s)


def _score(s: Tensor) -> Coefficients:
    return torch.ones_like(s), s, torch.ones_like(s)


def _v(s: Tensor) -> Coefficients:
    c_in = _variance_preserving(s)
    return c_in * c_in, -s * c_in, c_in


def _x0(s: Tensor) -> Coefficients:
    return torch.zeros_like(s), torch.ones_like(s), _variance_preserving(s)


def _flow(s: Tensor) -> Coefficients:
    c_in = 1 / (1 + s)
    return c_in, -s * c_in, c_in


def _reverse_flow(s: Tensor) -> Coefficients:
    c_in = 1 / (1 + s)
    return c_in, s * c_in, c_in


ROWS: dict[str, Callable[[Tensor], Coefficients]] = {
    "epsilon": _epsilon,
    "score": _score,
    "v": _v,
    "x0": _x0,
    "flow": _flow,
    "reverse_flow": _reverse_flow,
}


class Prediction:
    """A row of the table with its constants.

    Attributes:
        sigma_min, sigma_max: the noise levels it serves; `END` stands for an infinite one.
    """

    def __init__(self, settings: PredictionSettings, one_step: bool = False) -> None:
        self.settings = settings
        default = EPS if one_step else 0.0
        self.eps = default if settings.eps is None else settings.eps
        self.levels: Tensor | None = None
        low, high = 0.0, math.inf
        if settings.input == "steps":
            self.levels = discrete_levels(
                settings.betas,
                steps=settings.steps,
                beta_start=settings.beta_start,
                beta_end=settings.beta_end,
                zero_snr=settings.zero_snr,
            )
            low, high = float(self.levels[0]), float(self.levels[-1])
        elif settings.input == "iddpm":
            self.levels = iddpm_levels(settings.steps)
            low, high = float(self.levels[-2]), float(self.levels[0])
        elif settings.input == "vp":
            low, high = self._vp_sigma(1e-5), self._vp_sigma(1.0)
        elif settings.input in ("half", "half_log"):
            low, high = 0.02, 100.0
        elif settings.input in ("flow", "reverse_flow", "angle"):
            high = END
        self.sigma_min = settings.sigma_min or low
        self.sigma_max = settings.sigma_max or high

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """`(c_skip, c_out, c_in, c_noise)` at noise levels of any shape, in float64."""
        s = sigma.to(torch.float64)
        if self.settings.kind == "edm":
            row = self._edm(s)
        else:
            row = ROWS[self.settings.kind](s)
            if self.settings.kind == "x0" and self.settings.input in ("flow", "reverse_flow"):
                row = (*row[:2], 1 / (1 + s))
        return *row, self.time(s) * self.settings.factor

    def _edm(self, s: Tensor) -> Coefficients:
        data, above = self.settings.sigma_data, s - self.eps
        c_in = (s * s + data**2).rsqrt()
        return data**2 / (above * above + data**2), above * data * c_in, c_in

    def time(self, s: Tensor) -> Tensor:
        """What F is told, before its scale, in float64."""
        match self.settings.input:
            case "log":
                return s.log()
            case "half_log":
                return (0.5 * s).log()
            case "half":
                return 0.5 * s
            case "angle":
                return s.atan() * (2 / math.pi)
            case "flow":
                return s / (1 + s)
            case "reverse_flow":
                return 1 / (1 + s)
            case "vp":
                return (self.settings.steps - 1) * self._vp_time(s)
        assert self.levels is not None
        if self.settings.input == "iddpm":
            return self.settings.steps - 1.0 - self._nearest(s)
        return time_of(s, self.levels)

    def round(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the network knows, where it knows only some."""
        if self.settings.input != "iddpm":
            return sigma
        assert self.levels is not None
        return self.levels.to(sigma.device)[self._nearest(sigma)].to(sigma.dtype)

    @property
    def start(self) -> float:
        """The noise level that a one-step generator starts at: the noisy end where F's error is not
        amplified there, else `EPSILON_START`, at a step of the schedule."""
        if self.settings.kind == "edm":
            return min(EDM_START, self.sigma_max)
        if self.settings.kind not in ("epsilon", "score"):
            return self.sigma_max
        if self.levels is None or self.settings.input == "iddpm":
            return min(EPSILON_START, self.sigma_max)
        distance = (self.levels.log() - math.log(EPSILON_START)).abs()
        return float(self.levels[distance.argmin()])

    def gain(self, sigma: float) -> float:
        """What an error of F is multiplied by in one step from this noise level: |c_out|."""
        level = torch.tensor(sigma, dtype=torch.float64, device="cpu")
        return float(self.coefficients(level)[1].abs())

    def _nearest(self, sigma: Tensor) -> Tensor:
        assert self.levels is not None
        levels = self.levels.to(sigma.device)
        flat = sigma.to(torch.float64).reshape(-1, 1)
        return (flat - levels).abs().argmin(dim=1).reshape(sigma.shape)

    def _vp_sigma(self, t: float) -> float:
        return math.sqrt(math.expm1(0.5 * self.settings.vp_beta_d * t**2 + self.settings.vp_beta_min * t))

    def _vp_time(self, s: Tensor) -> Tensor:
        low, d = self.settings.vp_beta_min, self.settings.vp_beta_d
        return ((low**2 + 2 * d * (s * s).log1p()).sqrt() - low) / d
