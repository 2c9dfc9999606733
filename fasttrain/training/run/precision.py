"""The dtype of a run's `precision: auto`, decided once: measured by rank 0 before the first
iteration, kept in each checkpoint, so that a resumed run and every process compute in the same.

    settings = in_precision(settings, run)
"""

from __future__ import annotations

from typing import TypeVar

from fasttrain.models.precision import decided, is_open, with_precision
from fasttrain.settings import RunSettings
from fasttrain.training.run.progress import say
from fasttrain.training.run.run import Run

__all__ = ["in_precision"]

S = TypeVar("S", bound=RunSettings)


def in_precision(settings: S, run: Run) -> S:
    """The settings with a dtype for each `auto`; every process must call it. On a GPU, and where
    nothing is `auto`, as they are. A checkpoint that says nothing was trained in float32."""
    world = run.world
    if not is_open(settings, world.device):
        return settings
    if run.start is not None:
        run.precision = run.start.state.get("precision") or "float32"
    else:
        gain = world.on_main(lambda: decided(settings, world.device)[1])
        assert gain is not None
        run.precision = gain.dtype
        measured = f"bfloat16 {gain.gain:.1f} times as fast as float32 on this CPU"
        say(settings, world, f"precision {run.precision}: {measured}")
    return with_precision(settings, run.precision)
