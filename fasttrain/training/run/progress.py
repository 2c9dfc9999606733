"""Progress of a run, for people and in `stats.jsonl`.

progress = Progress(settings, world, images, seconds_before)
progress.report(images, {"loss/generator": 0.7})          # a line in the file and on the screen
"""

from __future__ import annotations

import sys
import time

from rich import progress as bars
from rich.console import Console

from fasttrain.checkpoints.stats import Stats
from fasttrain.settings import RunSettings
from fasttrain.system.processes import World

__all__ = ["Progress", "say"]


def say(settings: RunSettings, world: World, line: str) -> None:
    """Print a line about the run, on rank 0."""
    if world.is_main:
        print(f"{settings.run}: {line}", file=sys.stderr)


class Progress:
    """A bar on a terminal, lines elsewhere; the statistics' file; the clock.

    seconds_before: seconds of training in earlier sessions of this run.
    """

    def __init__(
        self, settings: RunSettings, world: World, images: int, seconds_before: float
    ) -> None:
        self.settings, self.world = settings, world
        self.stats: Stats | None = None
        self.start_at(images, seconds_before)
        console = Console(stderr=True)
        self.verbose = world.is_main and not console.is_terminal
        self.bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(),
            bars.TextColumn("{task.completed:,}/{task.total:,} images"),
            bars.TimeRemainingColumn(),
            bars.TextColumn("{task.fields[line]}"),
            console=console,
            disable=self.verbose or not world.is_main,
            transient=True,
        )
        name, total = settings.run.name, settings.images
        self.bar = self.bars.add_task(name, total=total, completed=images, line="")
        self.bars.start()

    def start_at(self, images: int, seconds_before: float) -> None:
        """Continue from `images` images: later lines of the statistics are removed."""
        self.began = time.monotonic()
        self.seconds_before = seconds_before
        self._close_stats()
        self.world.on_main(lambda: self._open_stats(images))

    def _open_stats(self, images: int) -> None:
        self.stats = Stats(self.settings.run, images)

    def _close_stats(self) -> None:
        if self.stats is not None:
            self.stats.close()
            self.stats = None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, earlier sessions of this run included."""
        return self.seconds_before + time.monotonic() - self.began

    def advance(self, images: int) -> None:
        self.bars.update(self.bar, completed=images)

    def report(self, images: int, values: dict[str, float]) -> None:
        """Write a line of `stats.jsonl` and show it; on rank 0."""
        assert self.stats is not None
        self.stats.write(images, values | {"seconds": round(self.seconds, 3)})
        line = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.bars.update(self.bar, line=line)
        if self.verbose:
            done = f"{images:>9,}/{self.settings.images:,} images"
            print(f"{self.settings.run.name} {done} {self.seconds:7.1f} s  {line}", file=sys.stderr)

    def close(self) -> None:
        self.bars.stop()
        self._close_stats()
