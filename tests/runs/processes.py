"""Runs on several numbers of tiny processes, forked once: what the test and the benchmark of batch
norm groups over several processes share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.metrics.resampling import Estimate
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start, stop
from fasttrain.training import finetune, prepared
from tests.faults.child import free_port
from tests.ranks import all_end, be_rank

__all__ = ["NUMBERS", "lines", "run_on"]

NUMBERS = {
    "loss/generator": 1e-4,
    "loss/discriminator": 1e-4,
    "loss/r1": 2e-3,
    "gradient/generator": 2e-2,
    "gradient/discriminator": 2e-2,
    "gradient/r1": 2e-2,
}
"""What is compared, and how far it may be from one process's, relative. The features have kinks
(ReLU6): rounding flips a few of their masks, which moves gradients, and R1, most."""


class NoEvaluation:
    """In place of `Evaluator`: what is compared is training."""

    def __init__(self, *_: Any) -> None:
        pass

    def __call__(self, *_: Any) -> dict[str, Estimate]:
        return {"fd": Estimate(1.0)}

    def protocol(self) -> dict[str, Any]:
        return {}


def run_on(cells: Sequence[tuple[int, Sequence[str]]], folder: Path) -> None:
    """Fine-tune the digits with overrides, on this number of processes, one cell after the other.

    Raises AssertionError with what was said when a process fails.
    """
    ranks = max(world for world, _ in cells)
    ports = [free_port() for _ in cells]
    all_end([partial(_run, rank, cells, ports) for rank in range(ranks)], folder)


def _run(rank: int, cells: Sequence[tuple[int, Sequence[str]]], ports: Sequence[int]) -> None:
    prepared.Evaluator = NoEvaluation  # type: ignore[assignment, misc]
    for (world, overrides), port in zip(cells, ports, strict=True):
        if rank >= world:
            continue
        be_rank(rank, world, port)
        settings = load_settings("digits-d2o-f", overrides, FinetuneSettings)
        try:
            finetune.finetune(settings, start())
        finally:
            stop()


def lines(run: Path) -> list[dict[str, float]]:
    """The numbers of each iteration."""
    return [{k: v for k, v in line.items() if k in NUMBERS} for line in read_stats(run)]
