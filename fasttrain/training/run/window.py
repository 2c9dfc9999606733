"""Statistics between two lines of `stats.jsonl`: counts, means of metrics, waiting for data.

window = Window(settings, world, reading)
window.count("skipped/generator")
values = window.collect(state.held)           # every process must call it
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from fasttrain.settings import RunSettings
from fasttrain.system.files import write_atomic
from fasttrain.system.processes import World
from fasttrain.training.log import collect, reset
from fasttrain.training.run.reading import Reading

__all__ = ["Window"]


class Window:
    """The window of the current line of statistics."""

    def __init__(self, settings: RunSettings, world: World, reading: Reading) -> None:
        self.settings, self.world, self.reading = settings, world, reading
        self.counts: Counter[str] = Counter()
        self.memory_written = False

    def restart(self) -> None:
        """Clear metrics and waiting time, which a run that ended early may have left."""
        reset()
        self.reading.restart()

    def count(self, name: str, by: int = 1) -> None:
        self.counts[name] += by

    def collect(self, held: Callable[[], dict[str, Any]]) -> dict[str, float]:
        """The metrics of the window; then starts the next window.

        held: bytes on this process by part of the training state; those of all processes are
            written to `memory.json` with the first line.
        """
        values = collect(self.world)
        values |= {name: float(count) for name, count in self.counts.items()}
        self.counts.clear()
        if not self.memory_written:
            self.memory_written = True
            as_json = json.dumps(self.world.gather(held()), indent=1)
            path = self.settings.run / "memory.json"
            self.world.on_main(lambda: write_atomic(path, as_json))
        return values | self.reading.waiting()
