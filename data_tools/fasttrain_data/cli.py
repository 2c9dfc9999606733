"""The `fasttrain-data` command: images in, checked WebDataset shards out.

A mistake of the user is one line on stderr and exit status 2, never a traceback.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from fasttrain_data.class_names import read_names
from fasttrain_data.contact_sheet import preview as write_preview
from fasttrain_data.conversion import Options, run_conversion
from fasttrain_data.conversion import split as split_set
from fasttrain_data.errors import DataError, Unreachable, VerificationError, shown
from fasttrain_data.images import Crop
from fasttrain_data.index import Index, load_index
from fasttrain_data.index_command import ImageKey, LabelField
from fasttrain_data.index_command import index as index_tars
from fasttrain_data.progress import Interrupted, progress_bar
from fasttrain_data.records import Format
from fasttrain_data.verification import run_verification

__all__ = ["app", "main"]

app = typer.Typer(
    help="Image collections as WebDataset shards with proof of what is in them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)

SHOWN = 20
"""Files left out that are listed on the terminal; `skipped.jsonl` has all."""


Workers = Annotated[
    int | None, typer.Option(help="Processes.", show_default="one a core; 1 for small sets")
]
Shards = Annotated[Path, typer.Argument(help="Folder of a shard set.", show_default=False)]


def main() -> None:
    """Entry point: run the command; a user's mistake ends in one line."""
    try:
        app(prog_name="fasttrain-data")
    except VerificationError as error:
        _fail(*error.problems)
    except DataError as error:
        _fail(str(error))
    except Unreachable as error:
        print(f"fasttrain-data: {error}", file=sys.stderr)
        sys.exit(75)
    except Interrupted:
        print("fasttrain-data: stopped; the same command resumes", file=sys.stderr)
        sys.exit(130)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        _fail(f"{error.filename or 'file system'}: {error.strerror or error}")


def _fail(*lines: str) -> None:
    for line in lines:
        print(f"fasttrain-data: {' '.join(line.splitlines())}", file=sys.stderr)
    sys.exit(2)


@app.command(
    epilog="Examples:\n\n"
    "[bold]fasttrain-data convert digits data/digits[/]\n\n"
    "[bold]fasttrain-data convert photos data/photos64 --resolution 64 --max-bad 10[/]\n\n"
    "[bold]fasttrain-data convert ILSVRC2012_img_train.tar data/imagenet64 --resolution 64 "
    "--crop adm --channels 3[/]"
)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="The word `digits`; a folder with a subfolder of images for each class, or flat; "
            "an EDM dataset zip or folder; IDX files; CIFAR-10's python version; ImageNet's train "
            "tar; Hugging Face parquet tables; WebDataset's tars; npm's "
            "emoji package; another shard set.",
            show_default=False,
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to make.", show_default=False)],
    resolution: Annotated[
        int | None,
        typer.Option(help="Pixels a side.", show_default="as the images are"),
    ] = None,
    crop: Annotated[
        Crop, typer.Option(help="center: square, Lanczos; adm: box, bicubic, square; none.")
    ] = "center",
    channels: Annotated[
        int | None,
        typer.Option(help="1 grey, 3 colour.", show_default="1 when all images are grey"),
    ] = None,
    background: Annotated[str, typer.Option(help="Colour behind transparent pixels.")] = "white",
    record: Annotated[
        Format, typer.Option(help="Stored as PNG, lossless WebP, or chunks of raw pixels.")
    ] = "png",
    images_per_shard: Annotated[
        int | None,
        typer.Option(
            help="Largest number of images in a shard.", show_default="128 for digits, else 1000"
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the shuffle before images go to shards.")] = 0,
    split: Annotated[
        str, typer.Option(help="Of sources that have several: train, test.")
    ] = "train",
    class_names: Annotated[
        str | None,
        typer.Option(
            help="In label order: a text file, one a line, or with commas between; or another "
            "shard set, whose numbers the classes get.",
            show_default="as the source has them",
        ),
    ] = None,
    label_field: LabelField = None,
    image_key: ImageKey = None,
    max_bad: Annotated[int, typer.Option(help="Leave out up to N unreadable files.")] = 0,
    workers: Workers = None,
    force: Annotated[bool, typer.Option("--force", help="Replace another shard set.")] = False,
) -> None:
    """Write images as a shard set, completely or not at all. After a crash the same command
    resumes."""
    options = Options(
        images_per_shard=images_per_shard,
        seed=seed,
        resolution=resolution,
        channels=channels,
        crop=crop,
        background=background,
        record=record,
        split=split,
        class_names=None if class_names is None else read_names(class_names),
        label_field=label_field,
        image_key=image_key,
    )
    with progress_bar() as progress:
        done = run_conversion(
            source,
            out,
            options,
            max_bad=max_bad,
            workers=workers,
            force=force,
            progress=progress,
        )
    for name, reason in done.bad_files[:SHOWN]:
        print(f"left out: {shown(name)}: {reason}", file=sys.stderr)
    if len(done.bad_files) > SHOWN:
        print(f"left out: {len(done.bad_files) - SHOWN} more, see {out}/skipped.jsonl")
    if done.already_there:
        print(f"{out}: already there, {_summary(done.index)}")
        return
    print(f"{out}: {_summary(done.index)}")
    counts = Counter(reason for _, reason in done.bad_files)
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(counts.items()))
    print(f"left out: {len(done.bad_files)}" + (f" ({reasons})" if reasons else ""))
    if done.passed_over:
        most = sorted(done.passed_over.items(), key=lambda row: (-row[1], row[0]))[:SHOWN]
        names = ", ".join(f"{count} {shown(ending)}" for ending, count in most)
        print(f"passed over, no images by name: {sum(done.passed_over.values())} ({names})")


app.command(
    "index",
    epilog="Examples:\n\n[bold]fasttrain-data index sets/cats[/]\n\n"
    "[bold]fasttrain-data index 'https://example.org/cats-{000000..000146}.tar'[/]",
)(index_tars)


@app.command(epilog="Example:\n\n[bold]fasttrain-data verify data/digits[/]")
def verify(path: Shards, workers: Workers = None) -> None:
    """Hash every shard, decode every image, check every label, count copies."""
    with progress_bar() as progress:
        found = run_verification(path, workers=workers, progress=progress)
    print(f"{path}: sound, {_summary(found.index)}")
    print(f"copies of another image: {found.copies}, with another label: {found.contradictions}")


@app.command(
    epilog="Example:\n\n[bold]fasttrain-data split data/photos64 data/held-out data/train "
    "--share 0.1[/]"
)
def split(
    path: Shards,
    first: Annotated[Path, typer.Argument(help="Gets the share.", show_default=False)],
    second: Annotated[Path, typer.Argument(help="Gets the rest.", show_default=False)],
    share: Annotated[float, typer.Option(help="Of the images of each class.")] = 0.1,
    seed: Annotated[int, typer.Option(help="Of the choice.")] = 0,
    workers: Workers = None,
) -> None:
    """Cut a shard set in two, every class in the same proportion."""
    with progress_bar() as progress:
        made = split_set(
            path, first, second, share=share, seed=seed, workers=workers, progress=progress
        )
    for out, index in zip((first, second), made, strict=True):
        print(f"{out}: {_summary(index)}")


@app.command(
    epilog="Example:\n\n[bold]fasttrain-data bench data/photos64[/]",
)
def bench(
    path: Shards,
    images: Annotated[int, typer.Option(help="Of the set, to measure with.")] = 4000,
    out: Annotated[Path | None, typer.Option(help="Write the numbers as JSON.")] = None,
) -> None:
    """Images a second on one core by storage and reader, the same images for all."""
    from fasttrain_data.bench import run_bench

    run_bench(path, images=images, out=out)


@app.command(epilog="Example:\n\n[bold]fasttrain-data info data/digits[/]")
def info(path: Shards) -> None:
    """Print what the index says."""
    index = load_index(path)
    index.check_files(path)
    table = Table(show_header=False, box=None)
    for name, value in (
        ("images", f"{index.images:,}"),
        ("size", f"{index.resolution}x{index.resolution}, {index.channels} channels"),
        ("stored as", index.record),
        ("shards", f"{len(index.shards):,}, {index.bytes:,} bytes"),
        ("content", index.content_sha256),
        ("source", ", ".join(f"{key} {value}" for key, value in index.source.items())),
        ("options", _shown_options(index)),
        ("left out", str(sum(index.skipped.values()))),
    ):
        table.add_row(name, shown(value))
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


def _shown_options(index: Index) -> str:
    given = {key: value for key, value in index.options.items() if value is not None}
    given.pop("class_names", None)  # the table of classes has them
    return ", ".join(f"{key} {value}" for key, value in given.items())


def _summary(index: Index) -> str:
    return (
        f"{index.images:,} images of {index.resolution}x{index.resolution}x{index.channels} "
        f"in {len(index.classes)} classes, {len(index.shards)} shards, {index.bytes:,} bytes"
    )
