"""The averaged model of a run, whole: what is drawn, measured and, in the end, used.

average = Average(settings, world, engine, ema, sampler, evaluator)
network = average.network()                 # every process must call it
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.evaluation.protocol import HIGHER_IS_BETTER
from fasttrain.models.build import assemble
from fasttrain.sampling.generate import generate
from fasttrain.sampling.pictures import save_grid
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import RunSettings
from fasttrain.system.processes import World
from fasttrain.training.ema import EMA
from fasttrain.training.engines.engine import Engine

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

    @property
    def intervals(self) -> dict[str, int]:
        """Images after which it is drawn and evaluated again; 0: only at the end."""
        intervals = {"draw": self.settings.sample.every}
        if self.evaluator is not None:
            intervals["evaluate"] = self.settings.evaluate.every
        return intervals

    def network(self) -> Any:
        """In eval mode, on every process; every process must call it."""
        return assemble(self.settings, self.engine.constants() | self.ema.state_dict(), self.world)

    def save_grid(self, network: Any, path: Path) -> None:
        """Draw the run's fixed seeds into a PNG file; every process must call it."""
        seeds = range(self.settings.sample.count)
        self.world.on_main(lambda: save_grid(generate(self.sampler, network, seeds), path))

    def evaluate(self, network: Any) -> dict[str, Any]:
        """What a checkpoint says of its evaluation, the same on every process: named `values`, the
        `protocol` that they depend on, and the `score` by which the best has the lowest."""
        assert self.evaluator is not None
        estimates = self.evaluator(self.sampler, network)
        values = {name: estimate.value for name, estimate in estimates.items()}
        metric = self.settings.evaluate.metric
        score = -values[metric] if metric in HIGHER_IS_BETTER else values[metric]
        protocol = self.world.on_main(self.evaluator.protocol)
        return {"metric": metric, "score": score, "values": values, "protocol": protocol}
