"""The random, frozen projector of a projected GAN: it mixes the maps of a feature network across
channels and across scales, so that the heads cannot rely on a few easy channels
(Sauer et al., "Projected GANs Converge Faster", arXiv 2111.01007, section 3.2).

With f_i the feature maps from high to low resolution, and `up` bilinear x2 (corners aligned),

    h_i = CCM_i f_i + out_{i+1}          cross-channel mixing, a 1x1 convolution
    out_i = CSM_i up(h_i)                cross-scale mixing, a 1x1 convolution

A 1x1 convolution commutes with `up` (its bias too: bilinear weights sum to 1), and two of them
compose. So with out_i = up(y_i) an equal result is

    y_i = A_i f_i + b_i + up(V_i y_{i+1}),    A_i = V_i W_i,    b_i = V_i b_ccm_i + b_csm_i

where W_i and V_i are the matrices of CCM_i and CSM_i: every convolution runs before the doubling,
on a quarter of the pixels, and the wide maps between the two are never computed.

Use:

    projector = Projector([24, 40, 112, 320], cout=64, seed=0)
    projected = projector(maps)          # 64, 64, 128, 256 channels at twice each map's size
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from fasttrain.models.networks.frozen_conv import frozen_conv2d
from fasttrain.system.errors import UserError
from fasttrain.system.kept import Kept
from fasttrain_kernels import upsample_add

__all__ = ["Projector"]


class FrozenConv1x1(nn.Module):
    """A 1x1 convolution whose weights are buffers: saved and moved, never trained or listed.

    Kaiming-normal weight and torch's default uniform bias, drawn on the CPU from `generator`.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, in_channels: int, out_channels: int, generator: torch.Generator) -> None:
        super().__init__()
        weight = torch.randn(out_channels, in_channels, 1, 1, generator=generator, device="cpu")
        bias = torch.rand(out_channels, generator=generator, device="cpu")
        device = torch.get_default_device()
        self.register_buffer("weight", (weight * math.sqrt(2 / in_channels)).to(device))
        self.register_buffer("bias", ((bias * 2 - 1) / math.sqrt(in_channels)).to(device))


class CrossScaleMixing(nn.Module):
    """The 1x1 convolution after the doubling, under the published parameter names."""

    def __init__(self, in_channels: int, out_channels: int, generator: torch.Generator) -> None:
        super().__init__()
        self.out_conv = FrozenConv1x1(in_channels, out_channels, generator)


class Projector(nn.Module):
    """Random frozen cross-channel and cross-scale mixing of feature maps.

    Args:
        in_channels: channels of the feature maps, from high to low resolution.
        cout: channels of the first projected map.
        seed: seed of the weights, which depend on nothing else: not on the rank, the device or
            torch's global generator.
        expand: double the mixed channels at each lower resolution; else `cout` everywhere.
    Attributes:
        out_channels: channels of the projected maps; for four expanding ones
            cout, cout, 2 cout, 4 cout.
    """

    def __init__(
        self, in_channels: Sequence[int], cout: int = 64, seed: int = 0, expand: bool = True
    ) -> None:
        super().__init__()
        generator = torch.Generator("cpu").manual_seed(seed)
        mixed = [cout * 2**i if expand else cout for i in range(len(in_channels))]
        self.in_channels = tuple(in_channels)
        self.out_channels = (mixed[0], *mixed[:-1])
        for i, channels in enumerate(in_channels):
            ccm = FrozenConv1x1(channels, mixed[i], generator)
            csm = CrossScaleMixing(mixed[i], self.out_channels[i], generator)
            self.add_module(f"layer{i}_ccm", ccm)
            self.add_module(f"layer{i}_csm", csm)
        self._composed = Kept[list[tuple[Tensor, Tensor, Tensor]]]()

    def composed(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor, Tensor]]:
        """A_i, b_i and V_i of every map in a dtype, computed in float64 at the first use and again
        after the weights have changed or moved."""
        return self._composed.get(
            self.buffers(),
            dtype,
            lambda: [self._compose(i, dtype) for i in range(len(self.in_channels))],
        )

    def _compose(self, i: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
        ccm = self.get_submodule(f"layer{i}_ccm")
        csm = self.get_submodule(f"layer{i}_csm.out_conv")
        w, b = ccm.get_buffer("weight").double().flatten(1), ccm.get_buffer("bias").double()
        v, bias = csm.get_buffer("weight").double().flatten(1), csm.get_buffer("bias").double()
        weights = (v @ w, v @ b + bias, v)
        a, offset, mix = (t.to(dtype) for t in weights)
        return a[:, :, None, None], offset, mix[:, :, None, None]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Project the maps, from high to low resolution, [N, in_channels[i], H_i, W_i] of any float
        dtype, to [N, out_channels[i], 2 H_i, 2 W_i]. Differentiable twice in the maps.

        Raises UserError when a map is not twice as large as the next one.
        """
        check_sizes(maps)
        projected: list[Tensor] = []
        below: Tensor | None = None
        for i, (weight, bias, mix) in reversed(list(enumerate(self.composed(maps[0].dtype)))):
            y = frozen_conv2d(maps[i], weight, bias)
            if below is not None:
                y = upsample_add(frozen_conv2d(below, mix), y)
            projected.append(upsample_add(y))
            below = y
        return projected[::-1]


def check_sizes(maps: Sequence[Tensor]) -> None:
    """Raise UserError unless each map is exactly twice as large as the next."""
    sizes = [tuple(features.shape[-2:]) for features in maps]
    for (height, width), (next_height, next_width) in pairwise(sizes):
        if (height, width) != (2 * next_height, 2 * next_width):
            raise UserError(
                f"the feature maps' sizes {sizes} do not halve from one to the next: set the "
                f"backbone's resolution to a multiple of 32"
            )
