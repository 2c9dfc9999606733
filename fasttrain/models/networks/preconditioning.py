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
from collections.abc import Sequence
from inspect import signature
from typing import Any, Literal

import torch
from torch import Tensor, nn

from fasttrain.models.networks.network import Plain
from fasttrain.models.networks.prediction import Prediction
from fasttrain.models.networks.registry import network_class
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


class Precond(nn.Module):
    """The shared part: everything but the coefficients.

    Args:
        img_resolution, img_channels: of the (square) images.
        label_dim: number of classes, 0 for unconditional.
        model_type: a network of the registry.
        learned_variance: F has as many channels again, which are not used.
        model_kwargs: the network's other arguments.
    Attributes:
        model: the network F.
        sigma_min, sigma_max: the noise levels it serves; samplers clamp their range to them.
        activation_dtype, memory_format: what F computes in; may be set at any time. Parameters
            keep their own.
    Raises:
        ValueError: an unknown `model_type`.
    """

    sigma_min: float = 0.0
    sigma_max: float = math.inf
    sigma_dtype = torch.float32

    def __init__(
        self,
        img_resolution: int,
        img_channels: int,
        label_dim: int = 0,
        model_type: str = "SongUNet",
        *,
        learned_variance: bool = False,
        **model_kwargs: Any,
    ) -> None:
        super().__init__()
        self.img_resolution = img_resolution
        self.img_channels = img_channels
        self.label_dim = label_dim
        self.activation_dtype = torch.float32
        self.memory_format = torch.contiguous_format
        network = network_class(model_type)
        if "kernels" not in signature(network).parameters:
            model_kwargs.pop("kernels", None)
        self.model = network(
            img_resolution=img_resolution,
            in_channels=img_channels,
            out_channels=img_channels * (1 + learned_variance),
            label_dim=label_dim,
            **model_kwargs,
        )

    def coefficients(self, sigma: Tensor) -> tuple[Tensor | float, Tensor, Tensor | float, Tensor]:
        """`(c_skip, c_out, c_in, c_noise)` in float32 at sigma [N, 1, 1, 1], in `sigma_dtype`."""
        raise NotImplementedError

    def forward(
        self,
        x: Tensor,
        sigma: Tensor | float,
        class_labels: Tensor | None = None,
        augment_labels: Tensor | None = None,
    ) -> Tensor:
        """Denoise.

        Args:
            x: [N, C, H, W], any float dtype, of noise level sigma.
            sigma: a number, or a tensor of one or N elements in any shape.
            class_labels: [N, label_dim] one-hot; None means no class (zeros). Ignored by an
                unconditional network.
            augment_labels: [N, augment_dim] or None.
        Returns:
            The denoised images, float32 [N, C, H, W].
        Raises:
            ValueError: class labels of another width than `label_dim`.
        """
        x = x.to(torch.float32)
        n = len(x)
        if isinstance(sigma, Tensor):
            sigma = sigma.to(x.device, self.sigma_dtype).reshape(-1, 1, 1, 1).expand(n, 1, 1, 1)
        else:
            sigma = x.new_full((n, 1, 1, 1), float(sigma), dtype=self.sigma_dtype)
        c_skip, c_out, c_in, c_noise = self.coefficients(sigma)
        raw = self.model(
            (c_in * x).to(self.activation_dtype, memory_format=self.memory_format),
            c_noise.flatten(),
            self._labels(x, class_labels),
            augment_labels,
        )
        raw = raw.to(torch.float32, memory_format=torch.contiguous_format)
        return c_skip * x + c_out * raw[:, : self.img_channels]

    def _labels(self, x: Tensor, class_labels: Tensor | None) -> Tensor | None:
        if self.label_dim == 0:
            return None
        if class_labels is None:
            return x.new_zeros(len(x), self.label_dim)
        if class_labels.shape != (len(x), self.label_dim):
            raise ValueError(
                f"class_labels have shape {tuple(class_labels.shape)} but the network takes "
                f"one-hot labels of shape {(len(x), self.label_dim)}"
            )
        return class_labels.to(torch.float32)

    def blocks(self) -> Sequence[nn.Module]:
        """The network's own."""
        return self.model.blocks()

    def freezing(self) -> dict[int, list[str]]:
        """The network's own, by the names that its parameters have here."""
        groups = self.model.freezing()
        return {level: [f"model.{name}" for name in names] for level, names in groups.items()}

    def after_step(self) -> None:
        """The network's own."""
        self.model.after_step()

    def plain(self) -> Plain | None:
        """The network's plain form, whose wrapper is a one-step generator's of EDM's kind."""
        return self.model.plain()

    def round_sigma(self, sigma: Tensor | float) -> Tensor:
        """The nearest noise level that the network knows: here every one, unchanged (a number
        becomes a float64 tensor)."""
        if isinstance(sigma, Tensor):
            return sigma
        return torch.tensor(sigma, dtype=torch.float64)


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
