"""The averaged model of a run, whole: what is drawn, measured and, in the end, used.

average = Average(settings, world, engine, ema, sampler, evaluator)
network = average.network()                 # every process must call it
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from fasttrain.distributed import World
from fasttrain.ema import EMA
from fasttrain.engines import Engine
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.generation import generate
from fasttrain.models import assemble
from fasttrain.sampler import Sampler
from fasttrain.settings import RunSettings

__all__ = ["Average"]


@dataclass(frozen=True)
class Average:
    """The network of a run's averaged weights, and what is made of it as images go by.

    Attributes:
        engine, ema: hold the frozen and the averaged weights.
        sampler: how the network makes images.
        evaluator: None where the run measures nothing.
    """

    settings: RunSettings
    world: World
    engine: Engine[Any]
    ema: EMA
    sampler: Sampler
    evaluator: Evaluator | None

    def network(self) -> Any:
        """In eval mode, on every process; every process must call it."""
        return assemble(self.settings, self.engine.constants() | self.ema.state_dict(), self.world)

    def draw(self, network: Any) -> Tensor:
        """The grid of the run's fixed seeds."""
        return generate(self.sampler, network, range(self.settings.sample.count))

    def evaluate(self, network: Any) -> dict[str, float]:
        """Named distances, the same on every process."""
        assert self.evaluator is not None
        found = self.evaluator(self.sampler, network)
        return {name: estimate.value for name, estimate in found.items()}
