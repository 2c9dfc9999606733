"""The table of preconditionings: what turns a network F's output into an estimate of the image,

    D(y; s) = c_skip y + c_out F(c_in y; c_noise),       y = x + s n,  |a, b| = sqrt(a^2 + b^2).

    family     c_skip              c_out         c_in        c_noise
    edm        d^2 / (s^2 + d^2)   s d / |s, d|  1 / |s, d|  ln(s) / 4
    one_step   d^2 / (u^2 + d^2)   u d / |s, d|  1 / |s, d|  ln(s) / 4
    vp         1                   -s            1 / |1, s|  (M - 1) t(s)
    ve         1                   s             1           ln(s / 2)

with d = sigma_data, u = s - eps and t the inverse of
s(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), t in [epsilon_t, 1]. Sources: Karras et al.,
arXiv 2206.00364, table 1; `one_step` is EDM's with the boundary condition D(x; eps) = x of
consistency models (Song et al., arXiv 2303.01469, appendix C).

    row = FAMILIES["vp"].row(m=4000)
    c_skip, c_out, c_in, c_noise = row.coefficients(sigma)

Another family is one more function and a line in `FAMILIES`; a `Row` of another kind, with a
schedule of its own, needs no line: `Precond` takes any.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["FAMILIES", "Family", "Row", "vp_sigma", "vp_time"]

Coefficients = tuple[Tensor | float, Tensor, Tensor | float, Tensor]
Constants = Any
"""The constants of a family by their names, as attributes."""


class Row(Protocol):
    """A preconditioning with its constants.

    Attributes:
        dtype: of the noise levels that `coefficients` takes.
        sigma_min, sigma_max: the noise levels that the network serves.
    """

    dtype: torch.dtype
    sigma_min: float
    sigma_max: float

    def coefficients(self, sigma: Tensor) -> Coefficients:
        """`(c_skip, c_out, c_in, c_noise)` at noise levels of any shape."""

    def round(self, sigma: Tensor) -> Tensor:
        """The nearest noise levels that the network knows."""


@dataclass(frozen=True)
class Family:
    """A line of the table.

    Attributes:
        formula: (noise levels, constants) -> the coefficients.
        constants: names and defaults of what its formula takes.
        levels: constants -> the noise levels that its networks serve.
    """

    formula: Callable[[Tensor, Constants], Coefficients]
    constants: Mapping[str, float]
    levels: Callable[[Constants], tuple[float, float]] = lambda k: (k.sigma_min, k.sigma_max)

    def row(self, **constants: float) -> Row:
        """The row with these constants in the place of defaults. Raises ValueError for others."""
        for name in constants:
            if name not in self.constants:
                raise ValueError(f"{name}: choose one of {', '.join(self.constants)}")
        return FamilyRow(self, SimpleNamespace(**{**self.constants, **constants}))


class FamilyRow:
    """A family's row: every noise level is one that its networks know."""

    dtype = torch.float32

    def __init__(self, family: Family, constants: SimpleNamespace) -> None:
        self.family, self.constants = family, constants
        self.sigma_min, self.sigma_max = family.levels(constants)

    def coefficients(self, sigma: Tensor) -> Coefficients:
        return self.family.formula(sigma, self.constants)

    def round(self, sigma: Tensor) -> Tensor:
        return sigma


def _edm(s: Tensor, k: Constants) -> Coefficients:
    variance = s**2 + k.sigma_data**2
    c_in = variance.rsqrt()
    return k.sigma_data**2 / variance, s * k.sigma_data * c_in, c_in, s.log() / 4


def _one_step(s: Tensor, k: Constants) -> Coefficients:
    data, above = k.sigma_data, s - k.eps
    _, _, c_in, c_noise = _edm(s, k)
    return data**2 / (above**2 + data**2), above * data * c_in, c_in, c_noise


def _vp(s: Tensor, k: Constants) -> Coefficients:
    return 1.0, -s, (s**2 + 1).rsqrt(), (k.m - 1) * vp_time(s, k.beta_d, k.beta_min)


def _ve(s: Tensor, k: Constants) -> Coefficients:
    return 1.0, s, 1.0, (0.5 * s).log()


def vp_sigma(t: float, beta_d: float, beta_min: float) -> float:
    """The noise level of a variance-preserving process at time t."""
    return math.sqrt(math.expm1(0.5 * beta_d * t**2 + beta_min * t))


def vp_time(sigma: Tensor, beta_d: float, beta_min: float) -> Tensor:
    """The inverse of `vp_sigma`."""
    root = (beta_min**2 + 2 * beta_d * (1 + sigma**2).log()).sqrt()
    return (root - beta_min) / beta_d


def _vp_levels(k: Constants) -> tuple[float, float]:
    low, high = (vp_sigma(t, k.beta_d, k.beta_min) for t in (k.epsilon_t, 1.0))
    return low, high


_EDM = {"sigma_min": 0.0, "sigma_max": math.inf, "sigma_data": 0.5}
FAMILIES: Mapping[str, Family] = {
    "edm": Family(_edm, _EDM),
    "vp": Family(_vp, {"beta_d": 19.9, "beta_min": 0.1, "m": 1000, "epsilon_t": 1e-5}, _vp_levels),
    "ve": Family(_ve, {"sigma_min": 0.02, "sigma_max": 100.0}),
    "one_step": Family(_one_step, _EDM | {"eps": 0.002}),
}
"""The table, by name."""
