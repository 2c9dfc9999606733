"""A bar on stderr for what takes long.

with progress_bar() as progress:
    run_verification(path, progress=progress)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["Interrupted", "progress_bar"]


class Interrupted(Exception):
    """Ctrl-C in the middle of some work: typer would end the program without a word."""


@contextmanager
def progress_bar() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr that follows (what, done, total); redrawn at most once a percent."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    # No thread that redraws: processes are forked meanwhile.
    with Progress(
        *columns, console=console, disable=not console.is_terminal, auto_refresh=False
    ) as bars:
        tasks: dict[str, Any] = {}
        shown: dict[str, int] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            if done == total or done - shown.get(what, 0) >= total / 100:
                shown[what] = done
                bars.update(tasks[what], completed=done, refresh=True)

        try:
            yield update
        except KeyboardInterrupt as error:
            raise Interrupted from error
