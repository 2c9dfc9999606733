"""Doubling and halving by one convolution: the older way of ADM's code, and latent-diffusion's."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fasttrain.models.networks.conv import Conv2d
from fasttrain.models.networks.frozen_conv import frozen_conv2d
from fasttrain.models.networks.layers import Init, cast, layout_of

__all__ = ["Resampling"]


class Resampling(nn.Module):
    """Halve the resolution by a 3x3 convolution of stride 2, or double it (nearest) before one.

    Called as a residual block is, `(x, emb, statistics)`, and gives `(x, None)`.
    """

    def __init__(
        self,
        channels: int,
        *,
        up: bool = False,
        down: bool = False,
        init: Init = Init(),
    ) -> None:
        super().__init__()
        self.in_channels = channels
        self.out_channels = channels
        self.down = down
        self.recompute = False  # there is no norm to compute again
        self.conv = Conv2d(channels, channels, 3, up=up, init=init)

    def forward(
        self, x: Tensor, emb: Tensor, statistics: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """x [N, C, H, W] -> [N, C, H / 2, W / 2] or [N, C, 2 H, 2 W] in its dtype; the embedding
        and the statistics are not read."""
        if not self.down:
            return self.conv(x), None
        weight: Tensor | None = self.conv.weight
        assert weight is not None
        weight = weight.to(x.dtype, memory_format=layout_of(x))
        bias = cast(self.conv.bias, x)
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            return F.conv2d(x, weight, bias, stride=2, padding=1), None
        return frozen_conv2d(x, weight, bias, stride=(2, 2), padding=(1, 1)), None
