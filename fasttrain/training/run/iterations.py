"""The part of a run that needs no directory: where it stands, and the optimizer steps it takes.

while run.images < settings.images: ...
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

    def every(self, interval: int | None) -> bool:
        """Whether what is done each `interval` iterations is due now; the first is not counted."""
        return bool(interval and self.iterations and self.iterations % interval == 0)

    def step(self, engine: Any, name: str) -> bool:
        """An optimizer step, at the rate for the images that this iteration ends with; whether it
        was applied, on every process."""
        engine.set_progress(self.images + self.settings.batch)
        applied: bool = engine.step()
        if not applied:
            self.skip(name)
        report(f"gradient/{name}", engine.norm)
        return applied

    def skip(self, name: str) -> None:
        """A step of this iteration was not applied, on any process."""
        raise NotImplementedError
