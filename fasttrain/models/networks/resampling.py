"""Doubling and halving without a residual block: the older way of ADM's code, and
latent-diffusion's."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from fasttrain.models.networks.conv import Conv2d
from fasttrain.models.networks.frozen_conv import frozen_conv2d
from fasttrain.models.networks.layers import Init, cast, layout_of
from fasttrain_kernels import Impl

__all__ = ["Resampling"]


class Resampling(nn.Module):
    """Half or double the resolution. With a kernel: by a convolution of stride 2, or of what
    doubling (nearest) gave; without (0): by averages of 2x2 pixels, or by doubling alone.

    Called as a residual block is, `(x, emb, statistics)`, and gives `(x, None)`.
    """

    def __init__(
        self,
        channels: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        init: Init = Init(),
        kernels: Impl = "auto",
    ) -> None:
        super().__init__()
        self.in_channels = channels
        self.out_channels = channels
        self.strided = down and kernel > 0
        moves = {} if self.strided else {"up": up, "down": down}
        self.conv = Conv2d(channels, channels, kernel, init=init, kernels=kernels, **moves)

    def forward(self, x: Tensor, emb: Tensor, statistics: Tensor | None = None) -> tuple[Tensor, None]:
        """x [N, C, H, W] -> [N, C, H / 2, W / 2] or [N, C, 2 H, 2 W] in its dtype; the embedding
        and the statistics are not read."""
        if not self.strided:
            return self.conv(x), None
        assert self.conv.weight is not None
        weight = self.conv.weight.to(x.dtype, memory_format=layout_of(x))
        bias, padding = cast(self.conv.bias, x), self.conv.kernel // 2
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            return F.conv2d(x, weight, bias, stride=2, padding=padding), None
        pair = (padding, padding)
        return frozen_conv2d(x, weight, bias, stride=(2, 2), padding=pair), None
