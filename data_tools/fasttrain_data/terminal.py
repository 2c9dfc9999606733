"""What the command shows: a bar of progress, and a set in one line.

with progress_bar() as progress:
    progress("writing shards", 3, 10)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from fasttrain_data.errors import shown
from fasttrain_data.index import Index

__all__ = ["Interrupted", "progress_bar", "summary"]

NAMED = 5
"""Classes that are named in a line."""


class Interrupted(Exception):
    """Ctrl-C in the middle of some work: typer would end the program without a word."""


def summary(index: Index, *, classes: bool = False) -> str:
    """What a set is in a line; with the first classes, which show most mistakes with labels."""
    number, names = len(index.classes), ""
    if classes:
        first = ", ".join(f"{info.name} {info.images:,}" for info in index.classes[:NAMED])
        names = f" ({shown(first)}{', ...' if number > NAMED else ''})"
    return (
        f"{index.images:,} images of {index.resolution}x{index.resolution}x{index.channels} "
        f"in {number} class{'' if number == 1 else 'es'}{names}, {len(index.shards)} "
        f"shard{'' if len(index.shards) == 1 else 's'}, {index.bytes:,} bytes"
    )


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
        redrawn: dict[str, int] = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            if done == total or done - redrawn.get(what, 0) >= total / 100:
                redrawn[what] = done
                bars.update(tasks[what], completed=done, refresh=True)

        try:
            yield update
        except KeyboardInterrupt as error:
            raise Interrupted from error
