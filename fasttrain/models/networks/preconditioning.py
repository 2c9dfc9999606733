"""Preconditioned denoisers: a U-Net F wrapped so that its input and target have unit variance,

    D(x; sigma) = c_skip(sigma) x + c_out(sigma) F(c_in(sigma) x; c_noise(sigma)),

(Karras et al., "Elucidating the Design Space of Diffusion-Based Generative Models",
arXiv 2206.00364, table 1). Four sets of coefficients share one base class:

- `EDMPrecond`, EDM's own; `VPPrecond` and `VEPrecond`, of the score-SDE networks;
- `OneStepPrecond`, EDM's with the boundary condition D(x; eps) = x of consistency models
  (Song et al., arXiv 2303.01469, appendix C). Its state dict is EDMPrecond's, so that a diffusion
  model's weights initialise a one-step generator as they are.

Use:

    net = build_network("edm", "SongUNet", img_resolution=32, img_channels=3, label_dim=10)
    denoised = net(x, sigma, class_labels)
"""

from __future__ import annotations

import math
from typing import Any, Literal

import torch
from torch import Tensor

from fasttrain.models.networks.precond import Precond
from fasttrain.models.networks.prediction import Prediction
from fasttrain.settings.prediction import PredictionSettings

__all__ = [
    "EDMPrecond",
    "OneStepPrecond",
    "Precond",
    "PrecondName",
    "VEPrecond",
    "VPPrecond",
    "build_network",
]

PrecondName = Literal["edm", "vp", "ve", "one_step"]


class EDMPrecond(Precond):
    """EDM's coefficients; `sigma_data` is the deviation of the data, in units of [-1, 1]."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_type: str = "SongUNet",
        *,
        sigma_min: float = 0.0,
        sigma_max: float = math.inf,
        sigma_data: float = 0.5,
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, model_type, **model_kwargs)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max
        self.sigma_data = sigma_data

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        data = self.sigma_data
        variance = sigma**2 + data**2
        return (
            data**2 / variance,
            sigma * data * variance.rsqrt(),
            variance.rsqrt(),
            sigma.log() / 4,
        )


class OneStepPrecond(EDMPrecond):
    """The one-step generator's coefficients: EDM's c_in and c_noise, and

    c_skip = sd^2 / ((sigma - eps)^2 + sd^2),  c_out = (sigma - eps) sd / sqrt(sigma^2 + sd^2).
    """

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_type: str = "SongUNet",
        *,
        eps: float = 0.002,
        **kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, model_type, **kwargs)
        self.eps = eps

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        _, _, c_in, c_noise = super().coefficients(sigma)
        data, above = self.sigma_data, sigma - self.eps
        return data**2 / (above**2 + data**2), above * data * c_in, c_in, c_noise


class VPPrecond(Precond):
    """Variance preserving: sigma(t) = sqrt(exp(beta_d t^2 / 2 + beta_min t) - 1), t in
    [epsilon_t, 1]; the network is told (M - 1) t."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_type: str = "SongUNet",
        *,
        beta_d: float = 19.9,
        beta_min: float = 0.1,
        m: int = 1000,
        epsilon_t: float = 1e-5,
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, model_type, **model_kwargs)
        self.beta_d = beta_d
        self.beta_min = beta_min
        self.m = m
        self.sigma_min = self.sigma(epsilon_t)
        self.sigma_max = self.sigma(1.0)

    def sigma(self, t: float) -> float:
        """The noise level at time t."""
        return math.sqrt(math.expm1(0.5 * self.beta_d * t**2 + self.beta_min * t))

    def time(self, sigma: Tensor) -> Tensor:
        """The inverse of `sigma`."""
        root = (self.beta_min**2 + 2 * self.beta_d * (1 + sigma**2).log()).sqrt()
        return (root - self.beta_min) / self.beta_d

    def coefficients(self, sigma: Tensor) -> tuple[float, Tensor, Tensor, Tensor]:
        return 1.0, -sigma, (sigma**2 + 1).rsqrt(), (self.m - 1) * self.time(sigma)


class VEPrecond(Precond):
    """Variance exploding: the network sees the unscaled image and ln(sigma / 2)."""

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_type: str = "SongUNet",
        *,
        sigma_min: float = 0.02,
        sigma_max: float = 100.0,
        **model_kwargs: Any,
    ) -> None:
        super().__init__(img_resolution, img_channels, label_dim, model_type, **model_kwargs)
        self.sigma_min = sigma_min
        self.sigma_max = sigma_max

    def coefficients(self, sigma: Tensor) -> tuple[float, Tensor, float, Tensor]:
        return 1.0, sigma, 1.0, (0.5 * sigma).log()


class PredictionPrecond(Precond):
    """Any row of the table of `fasttrain.models.networks.prediction`, from the settings. Its
    coefficients are worked out in float64: a time is an interpolation."""

    sigma_dtype = torch.float64

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_type: str = "SongUNet",
        *,
        prediction: PredictionSettings,
        one_step: bool = False,
        **model_kwargs: Any,
    ) -> None:
        variance = prediction.learned_variance
        arguments = (img_resolution, img_channels, label_dim, model_type)
        super().__init__(*arguments, learned_variance=variance, **model_kwargs)
        self.row = Prediction(prediction, one_step)
        self.sigma_min, self.sigma_max = self.row.sigma_min, self.row.sigma_max

    def coefficients(self, sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        c_skip, c_out, c_in, c_noise = (c.float() for c in self.row.coefficients(sigma))
        return c_skip, c_out, c_in, c_noise

    def plain(self) -> None:
        """None: the wrapper is another."""

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        return self.row.round(super().round_sigma(sigma))


_PRECONDS: dict[str, type[Precond]] = {
    "edm": EDMPrecond,
    "vp": VPPrecond,
    "ve": VEPrecond,
    "one_step": OneStepPrecond,
}


def build_network(
    precond: PrecondName,
    model_type: str,
    img_resolution: int,
    img_channels: int,
    label_dim: int,
    **kwargs: Any,
) -> Precond:
    """A preconditioned network by name; `kwargs` are the preconditioner's constants and the
    U-Net's arguments. Under `torch.device("meta")` it costs no memory.

    Raises:
        ValueError: an unknown `precond` or `model_type`.
    """
    if precond not in _PRECONDS:
        raise ValueError(f"precond is {precond!r}: choose one of {', '.join(_PRECONDS)}")
    prediction = kwargs.pop("prediction", None)
    if prediction is not None:
        arguments = (img_resolution, img_channels, label_dim, model_type)
        one_step = precond == "one_step"
        return PredictionPrecond(*arguments, prediction=prediction, one_step=one_step, **kwargs)
    return _PRECONDS[precond](img_resolution, img_channels, label_dim, model_type, **kwargs)
