"""Exponential moving average of what trains; frozen weights are shared, not averaged.

half-life = min(half_life, fraction * images seen so far), in images (EDM2's and D2O's rule), so the
average forgets the start quickly and does not depend on the batch size.

    ema = EMA(generator, half_life=500_000)
    ema.update(images=batch, seen=run.images)
    image = one_step(ema.network(), z)
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import nn

from fasttrain_kernels import lerp_

__all__ = ["EMA"]


class EMA:
    """Average of the parameters of `module` that require a gradient when this is made.

    half_life: images; fraction: upper bound of the half-life as a share of the images seen.
    """

    def __init__(self, module: nn.Module, *, half_life: float, fraction: float = 0.05) -> None:
        self.module = module
        self.half_life = half_life
        self.fraction = fraction
        self.trained = {n: p for n, p in module.named_parameters() if p.requires_grad}
        self.average = {n: p.detach().clone() for n, p in self.trained.items()}
        self._averages, self._parameters = [*self.average.values()], [*self.trained.values()]

    def update(self, *, images: int, seen: int) -> None:
        """Take in the current weights after `images` more images, `seen` in all with these."""
        half_life = min(self.half_life, self.fraction * seen)
        keep = 0.5 ** (images / max(half_life, 1e-8))
        lerp_(self._averages, self._parameters, 1 - keep)

    def network(self) -> nn.Module:
        """A copy of the module that holds the average, in eval mode. It shares all its weights
        with the average and with the module's frozen part, so it costs no memory."""
        memo: dict[int, object] = {id(p): p for p in self.module.parameters()}
        for name, parameter in self.trained.items():
            memo[id(parameter)] = nn.Parameter(self.average[name], requires_grad=False)
        return copy.deepcopy(self.module, memo).eval()

    def state_dict(self) -> dict[str, torch.Tensor]:
        return dict(self.average)

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        for name, average in self.average.items():
            average.copy_(state[name])
