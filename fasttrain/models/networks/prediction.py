"""The preconditioning table: from what a network F predicts to an estimate of the image,

    D(y; s) = c_skip y + c_out F(c_in y; c_noise),      y = x_t / alpha_t = x0 + s e.

    kind          F predicts          c_skip             c_out              c_in
    edm           (Karras et al.)     d^2 / (u^2 + d^2)  u d / |s, d|       1 / |s, d|
    epsilon       e                   1                  -s                 1 / |1, s|
    score         -e                  1                  s                  1
    v             alpha e - sigma x0  1 / (1 + s^2)      -s / |1, s|        1 / |1, s|
    x0            x0                  0                  1                  1 / |1, s|
    flow          e - x0              1 / (1 + s)        -s / (1 + s)       1 / (1 + s)
    reverse_flow  x0 - e              1 / (1 + s)        s / (1 + s)        1 / (1 + s)

with |a, b| = sqrt(a^2 + b^2), d = sigma_data and u = s - eps (the boundary D(x; eps) = x of
consistency models and D2O). c_noise is one of `fasttrain.settings.prediction.Time`. A network that
predicts the image and is told a flow's time has a flow's c_in. Sources: arXiv 2206.00364 (table 1),
2303.01469 (appendix C), 2202.00512 (v), 2209.03003 (flow).

    row = Prediction(settings.prediction, one_step=True)
    c_skip, c_out, c_in, c_noise = row.coefficients(sigma)
    row.gain(settings.prediction.start)     # of F's error, where a one-step generator starts
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fasttrain.models.networks.schedules import nearest, time_of
from fasttrain.settings.prediction import PredictionSettings

__all__ = ["Prediction"]

Coefficients = tuple[Tensor, Tensor, Tensor]

EPS = 0.002
"""Where a one-step generator of EDM's kind gives its input back."""


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
        dtype: of the noise levels; a time is an interpolation.
        sigma_min, sigma_max: the noise levels it serves; `END` of the settings' schedules stands
            for an infinite one.
    """

    dtype = torch.float64

    def __init__(self, settings: PredictionSettings, one_step: bool = False) -> None:
        self.settings = settings
        default = EPS if one_step else 0.0
        self.eps = default if settings.eps is None else settings.eps
        self.sigma_min, self.sigma_max = settings.range
        # Networks are described on the meta device: these numbers are not.
        self.levels = torch.tensor(settings.levels, dtype=torch.float64, device="cpu")

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
        """What F is told, before its scale; in float32 where the family's own rounding is what its
        networks have seen."""
        match self.settings.input:
            case "log":
                return s.float().log()
            case "half_log":
                return (0.5 * s.float()).log()
            case "half":
                return 0.5 * s
            case "angle":
                return s.atan() * (2 / math.pi)
            case "flow":
                return s / (1 + s)
            case "reverse_flow":
                return 1 / (1 + s)
            case "vp":
                return (self.settings.steps - 1) * self._vp_time((s * s).log1p())
            case "edm_vp":
                s = s.float()
                return (self.settings.steps - 1) * self._vp_time((1 + s * s).log())
        levels = self._levels_on(s.device)
        if self.settings.input == "iddpm":
            return self.settings.steps - 1.0 - nearest(s, levels)
        return time_of(s, levels)

    def round(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the network knows, where it knows only some."""
        if self.settings.input != "iddpm":
            return sigma
        levels = self._levels_on(sigma.device)
        return levels[nearest(sigma, levels)].to(sigma.dtype)

    def gain(self, sigma: float) -> float:
        """What an error of F is multiplied by in one step from this noise level: |c_out|."""
        level = torch.tensor(sigma, dtype=torch.float64, device="cpu")
        return float(self.coefficients(level)[1].abs())

    def _levels_on(self, device: torch.device) -> Tensor:
        if self.levels.device != device:
            self.levels = self.levels.to(device)
        return self.levels

    def _vp_time(self, log_variance: Tensor) -> Tensor:
        low, d = self.settings.vp_beta_min, self.settings.vp_beta_d
        return ((low**2 + 2 * d * log_variance).sqrt() - low) / d
