"""The U-Nets' convolution, with doubling or halving of its input."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fasttrain.models.networks.frozen_conv import frozen_conv2d, frozen_conv_transpose2d
from fasttrain.models.networks.layers import Init, cast, layout_of
from fasttrain.models.networks.trained_conv import trained_conv2d
from fasttrain_kernels import (
    blocked_rows,
    in_channels_last,
    resample2d,
    resolve,
    upsampled_weight,
)

__all__ = ["Conv2d"]


class Conv2d(nn.Module):
    """A convolution (`kernel` 0: none, resampling only; 1 or 3: same padding) that may double
    (`up`) or halve (`down`) the resolution with a separable FIR filter.

    The filter comes before the convolution; where the two commute, or are one transposed
    convolution, the cheaper equal runs. With `fused_resample` the zero padding of both is applied
    once, before either (only the border differs), and a downsampling filter runs last.

    A convolution with a frozen weight keeps no input for the backward pass.

    Args:
        resample_filter: the 1-d filter's taps, `(1, 1)` or `(1, 3, 3, 1)`; normalised here.
        blocks_of: number of heads if the output is queries, keys and values: its channels,
            (head, d, j) in the parameters, are then (j, head, d) in the output, which `attention`
            reads in place.
    Raises:
        ValueError: `up` together with `down`; an odd number of taps.
    """

    resample_filter: Tensor | None

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: int,
        *,
        up: bool = False,
        down: bool = False,
        resample_filter: Sequence[int] = (1, 1),
        fused_resample: bool = False,
        blocks_of: int = 0,
        init: Init = Init(),
    ) -> None:
        if up and down:
            raise ValueError("a convolution resamples up or down, not both: choose one")
        if len(resample_filter) % 2:
            raise ValueError(f"resample_filter has {len(resample_filter)} taps: use an even number")
        super().__init__()
        self.in_channels = in_channels
        self.out_channels = out_channels
        self.kernel = kernel
        self.up = up
        self.down = down
        self.fused_resample = fused_resample
        self.blocks_of = blocks_of
        self.taps = tuple(resample_filter)
        fans = (in_channels * kernel**2, out_channels * kernel**2)
        shape = (out_channels, in_channels, kernel, kernel)
        self.weight = init.draw(shape, *fans, init.weight) if kernel else None
        self.bias = init.draw((out_channels,), *fans, init.bias) if kernel else None
        # In Python: operations on meta tensors import the compiler, which is 2 s of a dry run.
        square = sum(self.taps) ** 2
        products = [[a * b / square for b in self.taps] for a in self.taps]
        outer = torch.tensor([[products]], dtype=torch.float32)
        self.register_buffer("resample_filter", outer if up or down else None)

    def forward(
        self, x: Tensor, *, with_bias: bool = True, copy: tuple[Tensor, Tensor | None] | None = None
    ) -> Tensor:
        """x [N, in_channels, H, W] -> [N, out_channels, H', W'] in its dtype and memory format.
        Without the bias, the caller adds it. copy: of a 1x1 convolution's weight and bias, in the
        dtype of x and the output's order."""
        if not self.kernel:
            return self._resample(x)
        weight, bias = (None, None) if copy is None else copy
        if copy is None and with_bias:
            bias = self._bias(x)
        if self.resample_filter is not None and self.fused_resample:
            return self._fused(x, bias)
        if self.up and self.kernel == 1 and (bias is None or self.taps == (1, 1)):
            # A quarter of the multiplications.
            return self._resample(self._convolve(x, bias, copy=weight))
        if self.up and self.taps == (1, 1) and resolve("auto", x) == "triton":
            assert self.weight is not None
            own = self.weight if self.weight.dtype == x.dtype else self.weight.float()
            weight = upsampled_weight(own).to(x.dtype, memory_format=layout_of(x))
            if weight.requires_grad or (bias is not None and bias.requires_grad):
                return F.conv_transpose2d(x, weight, bias, stride=2, padding=1)
            return frozen_conv_transpose2d(x, weight, bias, stride=(2, 2), padding=(1, 1))
        return self._convolve(self._resample(x), bias, copy=weight)

    def _bias(self, x: Tensor) -> Tensor | None:
        if self.bias is not None and self.blocks_of:
            return blocked_rows(self.bias, self.blocks_of, x.dtype)
        return cast(self.bias, x)

    def _convolve(
        self,
        x: Tensor,
        bias: Tensor | None,
        padding: int | None = None,
        copy: Tensor | None = None,
    ) -> Tensor:
        """The convolution alone; default: same padding. copy: see `forward`."""
        weight = self.weight if copy is None else copy  # read once: an adapter computes it
        assert weight is not None
        if copy is None and self.blocks_of:
            weight = blocked_rows(weight, self.blocks_of, x.dtype)
        if self.kernel == 1 and padding is None:
            matrix = weight.flatten(1).to(x.dtype)
            if in_channels_last(x):  # a product over pixels, which adds the bias as it stores
                return F.linear(x.permute(0, 2, 3, 1), matrix, bias).permute(0, 3, 1, 2)
            weight = matrix[:, :, None, None]  # strides that do not look like channels_last
        elif not weight.requires_grad:
            weight = weight.to(x.dtype, memory_format=layout_of(x))
        padding = self.kernel // 2 if padding is None else padding
        if weight.requires_grad or (bias is not None and bias.requires_grad):
            return trained_conv2d(x, weight, bias, padding=padding)
        return frozen_conv2d(x, weight, bias, padding=(padding, padding))

    def _resample(self, x: Tensor) -> Tensor:
        if self.resample_filter is None:
            return x
        return resample2d(x, "up" if self.up else "down", taps=self.taps)

    def _fused(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """One padding for both: the filter runs without its own."""
        reach, filter_reach = self.kernel // 2, len(self.taps) // 2 - 1
        filters = self.resample_filter
        assert filters is not None
        if self.up:
            filters = 4 * filters.to(x.dtype).expand(x.shape[1], 1, -1, -1)
            pad = max(filter_reach - reach, 0)
            x = F.conv_transpose2d(x, filters, stride=2, padding=pad, groups=x.shape[1])
            return self._convolve(x, bias, max(reach - filter_reach, 0))
        x = self._convolve(x, None, reach + filter_reach)
        filters = filters.to(x.dtype).expand(x.shape[1], 1, -1, -1)
        return F.conv2d(x, filters, bias, stride=2, groups=x.shape[1])
