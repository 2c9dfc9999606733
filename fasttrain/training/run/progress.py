"""Progress of a run, for people, in `stats.jsonl` and on boards.

progress = Progress(settings, world, images, seconds_before)
progress.report(images, {"loss/generator": 0.7})          # a line in the file and on the screen
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from rich import progress as bars
from rich.console import Console
from rich.text import Text

from fasttrain.checkpoints.stats import Stats
from fasttrain.settings import RunSettings
from fasttrain.system.processes import World
from fasttrain.system.talk import quiet, verbose
from fasttrain.training.run.boards import Boards
from fasttrain.training.run.columns import Columns

__all__ = ["Progress", "say"]

SILENCE = 30.0
"""Longest time between two lines, in seconds, where there is no bar: reports may be far apart."""


def say(settings: RunSettings, world: World, line: str) -> None:
    """Print a line about the run, on rank 0; of a quiet command only warnings."""
    if world.is_main and (not quiet() or line.startswith("warning")):
        print(f"{settings.run}: {line}", file=sys.stderr)


class Progress:
    """A bar on a terminal with the reports above it, lines elsewhere, also between reports that are
    far apart; the statistics' file; the clock. A quiet command has the file alone.

    seconds_before: seconds of training in earlier sessions of this run.
    """

    def __init__(
        self, settings: RunSettings, world: World, images: int, seconds_before: float
    ) -> None:
        self.settings, self.world = settings, world
        self.stats: Stats | None = None
        self.boards: Boards | None = None
        self.start_at(images, seconds_before)
        console = Console(stderr=True)
        self.lines = world.is_main and not quiet() and (verbose() or not console.is_terminal)
        self.spoken, self.newest = time.monotonic(), dict[str, float]()
        self.columns = Columns(console.width)
        self.bars = bars.Progress(
            bars.TextColumn("{task.description}"),
            bars.BarColumn(bar_width=None),
            bars.TextColumn("{task.completed:,}/{task.total:,}"),
            bars.TextColumn("{task.fields[pace]}"),
            console=console,
            disable=self.lines or quiet() or not world.is_main,
            expand=True,
        )
        name, total = shortened(settings.run.name, console.width // 4), settings.images
        self.bar = self.bars.add_task(name, total=total, completed=images, pace="")
        self.bars.start()

    def start_at(self, images: int, seconds_before: float) -> None:
        """Continue from `images` images: later lines of the statistics are removed."""
        self.began, self.images, self.first = time.monotonic(), images, images
        self.seconds_before = seconds_before
        self._close_stats()
        self.world.on_main(lambda: self._open_stats(images))

    def _open_stats(self, images: int) -> None:
        self.stats = Stats(self.settings.run, images)
        self.boards = Boards(self.settings, images)

    def _close_stats(self) -> None:
        for each in (self.stats, self.boards):
            if each is not None:
                each.close()
        self.stats = self.boards = None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, earlier sessions of this run included."""
        return self.seconds_before + time.monotonic() - self.began

    def advance(self, images: int) -> None:
        self.images = images
        self.bars.update(self.bar, completed=images, pace=self.pace())
        if self.lines and time.monotonic() - self.spoken >= SILENCE:
            losses = {n: value for n, value in self.newest.items() if n.startswith("loss/")}
            self._print(images, losses)

    def pace(self) -> str:
        """Images a second since this command began, and the time that is left at that rate."""
        done, seconds = self.images - self.first, time.monotonic() - self.began
        if done <= 0 or seconds <= 0:
            return ""
        rate = done / seconds
        left = max(self.settings.images - self.images, 0) / rate
        return f"{significant(rate)} images/s, {duration(left)} left"

    def report(self, images: int, values: dict[str, float]) -> None:
        """Write a line of `stats.jsonl` and show it; on rank 0."""
        assert self.stats is not None
        assert self.boards is not None
        seconds = self.seconds
        line = values | {"seconds": round(seconds, 3)}
        self.stats.write(images, line)
        self.boards.scalars(images, line)
        self.newest = values
        if self.lines:
            self._print(images, values)
            return
        if quiet():
            return
        for row in self.columns.lines(images, seconds, values):
            self.bars.console.print(Text(row, no_wrap=True), highlight=False)

    def picture(self, images: int, path: Path) -> None:
        """Show a grid on the boards; on rank 0."""
        assert self.boards is not None
        self.boards.picture(images, path)

    def _print(self, images: int, values: dict[str, float]) -> None:
        self.spoken = time.monotonic()
        line = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        done = f"{images:>9,}/{self.settings.images:,} images"
        when = f"{self.seconds:7.1f} s  {self.pace()}"
        print(f"{self.settings.run.name} {done} {when}  {line}".rstrip(), file=sys.stderr)

    def close(self) -> None:
        self.bars.stop()
        self._close_stats()


def shortened(name: str, width: int) -> str:
    """A name within `width` characters."""
    return name if len(name) <= width else f"{name[: max(width - 1, 1)]}…"


def significant(rate: float) -> str:
    """A rate in as many digits as matter: 0.52, 9.3, 120, 12,000."""
    return f"{rate:,.0f}" if rate >= 20 else f"{rate:.2g}"


def duration(seconds: float) -> str:
    """For people: 45 s, 12 min, 3 h 05, 2 d 4 h."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    if minutes < 90:
        return f"{minutes} min"
    if minutes < 48 * 60:
        return f"{minutes // 60} h {minutes % 60:02d}"
    return f"{minutes // (24 * 60)} d {minutes // 60 % 24} h"
