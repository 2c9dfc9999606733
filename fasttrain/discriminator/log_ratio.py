"""A classifier of noised images that knows their noise level: a diffusion model's encoder, a copy
that trains, and one linear head on the last map of each of its levels,

    c(x_t; t) = d / |t, d| . (sum over maps of w . mean over pixels of silu(map / rms) + b),

with d = sigma_data, |t, d| = sqrt(t^2 + d^2), and w and b zero at the start, where no image is more
likely real than generated. It has neither random mixing nor spectral norm nor batch norm: it is to
give a log-ratio, of any size. The factor is how large that is, of Gaussian data, at level t.

    classifier = LogRatio(network, sigma_data=0.5)
    logits = classifier(x, t, class_labels)
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.discriminator.own import OwnFeatures, Unmixed

__all__ = ["LogRatio", "scale"]


class LogRatio(nn.Module):
    """The classifier of the module docstring.

    Args:
        network: a preconditioned network on its device, of which all that the last map depends on
            will train.
        sigma_data: deviation of the data.
    Raises:
        ValueError: a network that has nothing to look at.
    """

    def __init__(self, network: Any, sigma_data: float) -> None:
        super().__init__()
        self.features = OwnFeatures(network, (0.0, 1.0), seed=0, trained=True)
        self.features.train_maps(len(self.features.channels))
        self.sigma_data = sigma_data
        device = next(network.parameters()).device
        channels = sum(self.features.channels)
        self.unmixed = Unmixed(self.features.channels)
        self.weight = nn.Parameter(torch.zeros(1, channels, device=device))
        self.bias = nn.Parameter(torch.zeros(1, device=device))

    @property
    def levels(self) -> tuple[float, float]:
        """The noise levels that its network serves."""
        network = self.features.network
        return network.sigma_min, network.sigma_max

    def forward(self, x: Tensor, t: Tensor, class_labels: Tensor | None) -> Tensor:
        """x [N, C, H, W] of levels t, N elements in any shape -> ln p_t / q_t, float32 [N]."""
        maps = self.features.maps(x, t, class_labels, self.features.dtype)
        pooled = torch.cat([F.silu(m.float()).mean((2, 3)) for m in self.unmixed(maps)], dim=1)
        logits = F.linear(pooled, self.weight, self.bias)[:, 0]
        return logits * scale(t.reshape(-1).float(), self.sigma_data)


def scale(t: Tensor, sigma_data: float) -> Tensor:
    """d / |t, d| at levels t of any shape."""
    return sigma_data * (t * t + sigma_data**2).rsqrt()
