"""The part of a run that needs no directory: its counters and its optimizer steps.

while not run.ended: ...
    if run.step(engine, "generator"): ...
    if run.every(16): ...
"""

from __future__ import annotations

from typing import Any

from fasttrain.settings import RunSettings
from fasttrain.training.log import report

__all__ = ["Iterations"]


class Iterations:
    """Counts images and iterations.

    Attributes:
        images, iterations: done so far.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.images = self.iterations = 0

    @property
    def ended(self) -> bool:
        """Whether the last image has been seen."""
        return self.images >= self.settings.images

    @property
    def seen(self) -> int:
        """Images seen at the end of this iteration, which schedules go by."""
        return self.images + self.settings.batch

    def every(self, interval: int | None) -> bool:
        """Whether work of every `interval` iterations is due, never in the first one."""
        return bool(interval and self.iterations and self.iterations % interval == 0)

    def step(self, engine: Any, name: str) -> bool:
        """Take an optimizer step at the learning rate for the end of this iteration; returns
        whether it was applied, the same on every process."""
        engine.set_progress(self.seen)
        applied: bool = engine.step()
        self.tried(name, applied)
        report(f"gradient/{name}", engine.norm)
        return applied

    def tried(self, name: str, applied: bool) -> None:
        """Count a step of this iteration, which every process applied or none."""
        raise NotImplementedError
