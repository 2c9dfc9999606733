"""What all preconditioners share: everything but the coefficients, which
`fasttrain.models.networks.preconditioning` has."""

from __future__ import annotations

import math
from collections.abc import Sequence
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn

from fasttrain.models.networks.network import Plain
from fasttrain.models.networks.registry import network_class

__all__ = ["Precond"]


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

    def changes_after_step(self) -> list[nn.Parameter]:
        """The network's own."""
        return self.model.changes_after_step()

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
