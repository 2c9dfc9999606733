"""Layers of the heads: spectral norm and batch norm over groups of images."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttrain.models.networks.trained_conv import trained_conv2d
from fasttrain.system.errors import UserError
from fasttrain_kernels import Impl, ghost_batch_norm, power_iteration

__all__ = ["GhostBatchNorm", "SpectralConv2d"]


class SpectralConv2d(nn.Module):
    """A convolution with weight W / sigma, sigma = u^T W v its largest singular value.

    u and v are constants in the gradient: d sigma / dW = u v^T. `iterate()` improves them by one
    step of the power method; forward passes never do. Ten iterations are run at construction, from
    a start drawn from torch's global generator.

    Parameters: weight_orig [out, in, k, k], bias [out] or none. Buffers: weight_u [out],
    weight_v [in k k].
    """

    weight_u: Tensor
    weight_v: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        *,
        stride: int = 1,
        padding: int = 0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.stride = stride
        self.padding = padding
        fan_in = in_channels * kernel_size**2
        shape = (out_channels, in_channels, kernel_size, kernel_size)
        bound = 1 / math.sqrt(fan_in)  # torch's default initialisation of a convolution
        self.weight_orig = nn.Parameter(torch.empty(shape).uniform_(-bound, bound))
        self.bias = (
            nn.Parameter(torch.empty(out_channels).uniform_(-bound, bound)) if bias else None
        )
        self.register_buffer("weight_u", F.normalize(torch.randn(out_channels), dim=0))
        self.register_buffer("weight_v", F.normalize(torch.randn(fan_in), dim=0))
        for _ in range(10):
            self.iterate()

    def iterate(self) -> None:
        """One step of the power method: v = W^T u / |W^T u|, u = W v / |W v|."""
        iterate([self], impl="reference")

    def sigma(self) -> Tensor:
        """u^T W v, a scalar, differentiable in the weight."""
        return torch.dot(self.weight_u, self.weight_orig.flatten(1).mv(self.weight_v))

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight_orig / self.sigma()
        return trained_conv2d(x, weight, self.bias, stride=self.stride, padding=self.padding)


def iterate(convolutions: Sequence[SpectralConv2d], impl: Impl = "auto") -> None:
    """One step of the power method for all of them together."""
    power_iteration(
        [conv.weight_orig.detach().flatten(1) for conv in convolutions],
        [conv.weight_u for conv in convolutions],
        [conv.weight_v for conv in convolutions],
        impl=impl,
    )


class GhostBatchNorm(nn.Module):
    """Batch norm over groups of `group` consecutive images, in training and evaluation alike, with
    the leaky ReLU after it: see `fasttrain_kernels.ghost_batch_norm`. No running statistics.

    Attributes:
        group: number of images of a group on this process.
        gather: gathers the statistics of all processes that share the groups; see `Peers`.
    """

    gather: Callable[[Tensor], Tensor] | None = None

    def __init__(self, channels: int, group: int) -> None:
        super().__init__()
        if group < 1:
            raise UserError(f"norm_group is {group}: set it to a number of images, 1 or more")
        self.group = group
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor, *, leaky: bool = False) -> Tensor:
        """[N, C, H, W] -> the same, through a leaky ReLU of slope 0.2 if asked. Raises UserError
        when `group` does not divide N."""
        if x.shape[0] % self.group:
            raise UserError(
                f"batch norm over groups of {self.group} images got {x.shape[0]} images: set "
                f"discriminator.norm_group to a divisor of the micro-batch"
            )
        return ghost_batch_norm(
            x,
            self.weight,
            self.bias,
            group=self.group,
            activation="leaky_relu" if leaky else "none",
            gather=self.gather,
        )
