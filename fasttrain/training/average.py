"""The complete averaged model of a run, which is drawn, evaluated and, in the end, used.

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
from fasttrain.models.latents import Decoder
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
    """The network with a run's averaged weights, its pictures and its evaluations.

    Attributes:
        engine, ema: hold the frozen and the averaged weights.
        sampler: generates the network's images.
        evaluator: None for a run without evaluations.
        decoder: of a run on latents.
    """

    settings: RunSettings
    world: World
    engine: Engine[Any]
    ema: EMA
    sampler: Sampler
    evaluator: Evaluator | None
    decoder: Decoder | None = None

    @property
    def intervals(self) -> dict[str, int]:
        """Images between two grids and between two evaluations; 0: only at the end."""
        intervals = {"draw": self.settings.sample.every}
        if self.evaluator is not None:
            intervals["evaluate"] = self.settings.evaluate.every or 0
        return intervals

    def network(self) -> Any:
        """The network in eval mode, on every process; every process must call it."""
        weights = self.engine.constants() | self.ema.state_dict()
        network = assemble(self.settings, weights, self.world)
        network.decoder = self.decoder
        return network

    def save_grid(self, network: Any, path: Path) -> None:
        """Draw the run's fixed seeds into a PNG file; every process must call it."""
        seeds = range(self.settings.sample.count)
        self.world.on_main(lambda: save_grid(generate(self.sampler, network, seeds), path))

    def evaluate(self, network: Any) -> dict[str, Any]:
        """The evaluation as stored in a checkpoint, the same on every process: named `values`,
        their `protocol`, and the `score`, which is lowest for the best checkpoint."""
        assert self.evaluator is not None
        estimates = self.evaluator(self.sampler, network)
        values = {name: estimate.value for name, estimate in estimates.items()}
        metric = self.settings.evaluate.metric
        score = -values[metric] if metric in HIGHER_IS_BETTER else values[metric]
        protocol = self.world.on_main(self.evaluator.protocol)
        return {"metric": metric, "score": score, "values": values, "protocol": protocol}
