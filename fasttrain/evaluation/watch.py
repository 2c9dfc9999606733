"""Progress of an evaluation on standard error: a bar in a terminal, else a line for each phase.

with Watch(world) as watch:
    advance = watch.phase("generated images", total=1000)
    advance(64)
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from fasttrain.system.processes import World
from fasttrain.system.talk import quiet

__all__ = ["Phase", "Watch", "unwatched"]


class Phase(Protocol):
    """Begins a phase of `total` images; call the result with the number done since."""

    def __call__(self, title: str, total: int = 1) -> Callable[[int], None]: ...


def unwatched(title: str, total: int = 1) -> Callable[[int], None]:
    """A phase without output."""
    return lambda done: None


class Watch:
    """The phases of an evaluation; rank 0 shows its own progress."""

    def __init__(self, world: World) -> None:
        self.world = world
        console = Console(stderr=True)
        self.lines = world.is_main and not console.is_terminal and not quiet()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            disable=self.lines or quiet() or not world.is_main,
            transient=True,
        )

    def __enter__(self) -> Watch:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.progress.stop()

    def phase(self, title: str, total: int = 1) -> Callable[[int], None]:
        """Begin a phase; call the result with the number done since."""
        if self.world.size > 1:
            title += f", process 1 of {self.world.size}"
        if self.lines:
            print(f"evaluating: {title}" + (f" ({total:,})" if total > 1 else ""), file=sys.stderr)
        for task in self.progress.tasks:
            self.progress.update(task.id, completed=task.total)
        task_id = self.progress.add_task(title, total=total)
        return lambda done: self.progress.advance(task_id, done)
