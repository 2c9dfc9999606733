"""Runs on several numbers of tiny processes, forked once: what the test and the benchmark of batch
norm groups over several processes share."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch

from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.metrics.resampling import Estimate
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start, stop
from fasttrain.training import finetune
from tests.faults.child import forked, free_port

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

SECONDS = 1500


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
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    for name in ("deepspeed", "torch._dynamo", "torch.utils.tensorboard"):
        importlib.import_module(name)  # here, once, instead of in each process
    ranks = max(world for world, _ in cells)
    ports = [free_port() for _ in cells]
    children = []
    for rank in range(ranks):
        run = partial(_run, rank, cells, ports)
        children.append(forked(folder / f"rank-{rank}.log", run))
    until = time.monotonic() + SECONDS
    failed = ""
    for child in children:
        with suppress(AssertionError):
            if child.wait(0.1 if failed else until - time.monotonic()):
                failed = failed or child.said() or "a process failed without a word"
    assert not failed, failed[-4000:]
    assert all(child.status == 0 for child in children)


def _run(rank: int, cells: Sequence[tuple[int, Sequence[str]]], ports: Sequence[int]) -> None:
    torch.set_num_threads(1)
    finetune.Evaluator = NoEvaluation  # type: ignore[assignment, misc]
    for (world, overrides), port in zip(cells, ports, strict=True):
        if rank >= world:
            continue
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
            os.environ.pop(name, None)
        if world > 1:
            os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
            os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        settings = load_settings("digits-d2o-f", overrides, FinetuneSettings)
        try:
            finetune.finetune(settings, start())
        finally:
            stop()


def lines(run: Path) -> list[dict[str, float]]:
    """The numbers of each iteration."""
    return [{k: v for k, v in line.items() if k in NUMBERS} for line in read_stats(run)]
