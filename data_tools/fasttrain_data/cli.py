"""The `fasttrain-data` command: images in, checked WebDataset shards out.

A mistake of the user is one line on stderr and exit status 2, never a traceback.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fasttrain_data.contact_sheet import preview as write_preview
from fasttrain_data.conversion import run_conversion
from fasttrain_data.errors import DataError, VerificationError
from fasttrain_data.index import Index, load_index
from fasttrain_data.verification import verify as verify_shards

__all__ = ["app", "main"]

app = typer.Typer(
    help="Image collections as WebDataset shards with proof of what is in them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

Shards = Annotated[Path, typer.Argument(help="Folder of a shard set.", show_default=False)]


def main() -> None:
    """Entry point: run the command; say in one line what the user can mend."""
    try:
        app(prog_name="fasttrain-data")
    except VerificationError as error:
        _fail(*error.problems)
    except DataError as error:
        _fail(str(error))
    except OSError as error:
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}")


def _fail(*lines: str) -> None:
    for line in lines:
        print(f"fasttrain-data: {' '.join(line.splitlines())}", file=sys.stderr)
    sys.exit(2)


@app.command(
    epilog="Examples:\n\n"
    "[bold]fasttrain-data convert digits data/digits[/]\n\n"
    "[bold]fasttrain-data convert photos data/photos64 --resolution 64 --max-bad 10[/]"
)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="The word `digits`, or a folder with a subfolder of images for each class.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)],
    images_per_shard: Annotated[
        int | None,
        typer.Option(help="At most so many a shard.", show_default="128 for digits, else 1000"),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the shuffle before images go to shards.")] = 0,
    resolution: Annotated[
        int | None,
        typer.Option(help="Crop to a centred square, resize.", show_default="as the images are"),
    ] = None,
    channels: Annotated[
        int | None,
        typer.Option(help="1 grey, 3 colour.", show_default="1 when all images are grey"),
    ] = None,
    background: Annotated[str, typer.Option(help="Colour behind transparent pixels.")] = "white",
    max_bad: Annotated[int, typer.Option(help="Leave out so many unreadable files.")] = 0,
    force: Annotated[bool, typer.Option("--force", help="Replace another shard set.")] = False,
) -> None:
    """Write images as a shard set, whole or not at all."""
    with _progress() as progress:
        done = run_conversion(
            source,
            out,
            images_per_shard=images_per_shard,
            seed=seed,
            resolution=resolution,
            channels=channels,
            background=background,
            max_bad=max_bad,
            force=force,
            progress=progress,
        )
    for name, reason in done.bad_files:
        print(f"left out: {name}: {reason}", file=sys.stderr)
    if done.already_there:
        print(f"{out}: already there, {_summary(done.index)}")
        return
    print(f"{out}: {_summary(done.index)}")
    counts = Counter(reason for _, reason in done.bad_files)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    print(f"left out: {len(done.bad_files)}" + (f" ({reasons})" if reasons else ""))


@app.command(epilog="Example:\n\n[bold]fasttrain-data verify data/digits[/]")
def verify(path: Shards) -> None:
    """Hash every shard, decode every image, check every label against the index."""
    with _progress() as progress:
        index = verify_shards(path, progress=progress)
    print(f"{path}: sound, {_summary(index)}")


@app.command(epilog="Example:\n\n[bold]fasttrain-data info data/digits[/]")
def info(path: Shards) -> None:
    """Print what the index says."""
    index = load_index(path)
    index.check_files(path)
    table = Table(show_header=False, box=None)
    for name, value in (
        ("images", f"{index.images:,}"),
        ("size", f"{index.resolution}x{index.resolution}, {index.channels} channels"),
        ("shards", f"{len(index.shards):,}, {index.bytes:,} bytes"),
        ("content", index.content_sha256),
        ("source", ", ".join(f"{key} {value}" for key, value in index.source.items())),
        ("options", ", ".join(f"{key} {value}" for key, value in index.options.items())),
        ("left out", str(sum(index.skipped.values()))),
    ):
        table.add_row(name, value)
    classes = Table("label", "class", "images", box=None)
    for label, row in enumerate(index.classes):
        classes.add_row(str(label), row.name, f"{row.images:,}")
    console = Console(markup=False, highlight=False)
    console.print(table)
    console.print(classes)


@app.command(epilog="Example:\n\n[bold]fasttrain-data preview data/digits digits.png[/]")
def preview(
    path: Shards,
    out: Annotated[Path, typer.Argument(help="The PNG to write.")] = Path("preview.png"),
    columns: Annotated[int, typer.Option(help="Images of each class.")] = 16,
    max_classes: Annotated[int, typer.Option(help="Classes at most.")] = 40,
) -> None:
    """Write a contact sheet: a row of images for each class."""
    classes, images = write_preview(path, out, columns=columns, max_classes=max_classes)
    print(f"{out}: {images} images of {classes} classes")


def _summary(index: Index) -> str:
    return (
        f"{index.images:,} images of {index.resolution}x{index.resolution}x{index.channels} "
        f"in {len(index.classes)} classes, {len(index.shards)} shards, {index.bytes:,} bytes"
    )


@contextmanager
def _progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar on stderr that follows (what, done, total); redrawn at most once a percent."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bars:
        tasks = {}

        def update(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            if done == total or done % max(1, total // 100) == 0:
                bars.update(tasks[what], completed=done)

        yield update
