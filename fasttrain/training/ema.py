"""Exponential moving average of trained parameters; frozen weights are shared, not averaged.

half-life = min(half_life, fraction * images seen so far), in images (EDM2's and D2O's rule), so the
average forgets the start quickly and does not depend on the batch size.

    ema = EMA(engine, half_life=500_000)
    ema.update(images=batch, seen=run.images)
    weights = engine.constants() | ema.state_dict()

Each process keeps the average of its part of each parameter, so the average is sharded like the
engine's parameters.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fasttrain.training.engines.engine import Engine
from fasttrain_kernels import lerp_

__all__ = ["EMA"]


class EMA:
    """Average of the trained parameters of `engine`.

    half_life: images; fraction: upper bound of the half-life, as a fraction of the images seen.
    """

    def __init__(self, engine: Engine[Any], *, half_life: float, fraction: float = 0.05) -> None:
        self.engine = engine
        self.half_life = half_life
        self.fraction = fraction
        self.average = {name: part.clone() for name, part in engine.parts().items()}

    def update(self, *, images: int, seen: int) -> None:
        """Include the current weights after `images` more images, `seen` in all."""
        half_life = min(self.half_life, self.fraction * seen)
        keep = 0.5 ** (images / max(half_life, 1e-8))
        lerp_([*self.average.values()], [*self.engine.parts().values()], 1 - keep)

    def held(self) -> int:
        """Bytes of the average on this process."""
        return sum(part.numel() * part.element_size() for part in self.average.values())

    def state_dict(self) -> dict[str, Tensor]:
        """Full named tensors on the main process (elsewhere empty); every process must call it."""
        return self.engine.whole(self.average)

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name, average in self.average.items():
            average.copy_(self.engine.part(name, state[name]))
