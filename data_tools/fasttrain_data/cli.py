"""The `fasttrain-data` command: images in, checked WebDataset shards out.

A mistake of the user is one line on stderr and exit status 2, never a traceback.
"""

from __future__ import annotations

import os
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from fasttrain_data.class_names import read_names
from fasttrain_data.contact_sheet import preview as write_preview
from fasttrain_data.conversion import run_conversion
from fasttrain_data.errors import DataError, Unreachable, VerificationError, shown
from fasttrain_data.images import Crop
from fasttrain_data.index import load_index
from fasttrain_data.index_command import ImageKey, LabelField, summary_of_tars
from fasttrain_data.index_command import index as index_tars
from fasttrain_data.options import Options
from fasttrain_data.output import whole_output
from fasttrain_data.progress import Interrupted, progress_bar
from fasttrain_data.records import Format
from fasttrain_data.sources.selection import Unlabelled
from fasttrain_data.splitting import split as split_set
from fasttrain_data.summary import left_out, passed_over, summary, tables
from fasttrain_data.tar_verification import verify_tars
from fasttrain_data.tars import holds_tars
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
        with whole_output():
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
    "--channels 3[/]"
)
def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="The word `digits`; a folder, zip or tar with a subfolder of images for each "
            "class, flat, or with a file of labels; IDX files; CIFAR-10 and -100; ImageNet's train "
            "tar and its downsampled batches; STL-10; Hugging Face parquet tables; WebDataset's "
            "tars; npm's emoji package; another shard set.",
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
        str | None,
        typer.Option(
            help="Of sources that come in several: train, test, val.",
            show_default="train; all of a folder",
        ),
    ] = None,
    label_column: Annotated[
        str | None,
        typer.Option(
            help="Of a table, the column of labels; of CelebA, an attribute; of CIFAR-100 "
            "`coarse_labels`; `none`: one class.",
            show_default="the one that is declared or named so",
        ),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="A file of labels that does not lie beside the images: CSV, JSON lines, a list.",
            show_default=False,
        ),
    ] = None,
    unlabelled: Annotated[
        Unlabelled, typer.Option(help="Images that the labels do not name: refuse, or skip them.")
    ] = "refuse",
    follow_links: Annotated[
        bool,
        typer.Option("--follow-links", help="Follow symbolic links in a folder, wherever they go."),
    ] = False,
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
        label_column=label_column,
        labels=labels,
        unlabelled=unlabelled,
        follow_links=follow_links,
        class_names=None if class_names is None else read_names(class_names),
        label_field=label_field,
        image_key=image_key,
    )
    with progress_bar() as progress:
        done = run_conversion(
            source, out, options, max_bad=max_bad, workers=workers, force=force, progress=progress
        )
    for note in done.notes:
        print(f"note: {shown(note)}" if not note.startswith("warning") else note, file=sys.stderr)
    for name, reason in done.bad_files[:SHOWN]:
        print(f"left out: {shown(name)}: {reason}", file=sys.stderr)
    if len(done.bad_files) > SHOWN:
        print(f"left out: {len(done.bad_files) - SHOWN} more, see {out}/skipped.jsonl")
    if done.already_there:
        print(f"{out}: already there, {summary(done.index, classes=True)}")
        return
    print(f"{out}: {summary(done.index, classes=True)}")
    for line in (left_out(done.bad_files), *passed_over(done.passed_over)):
        print(line)


AS_GIVEN = {"allow_extra_args": True, "ignore_unknown_options": True}


@app.command(context_settings=AS_GIVEN, add_help_option=False)
def encode(context: typer.Context) -> None:
    """Write a shard set's images as latents of an autoencoder: SET OUT --vae FOLDER."""
    # The autoencoder is the trainer's, of which nothing is imported here.
    if find_spec("fasttrain") is None:
        raise DataError("latents are encoded by `fasttrain encode`: install fasttrain")
    os.execv(sys.executable, [sys.executable, "-m", "fasttrain", "encode", *context.args])


app.command(
    "index",
    epilog="Examples:\n\n[bold]fasttrain-data index sets/cats[/]\n\n"
    "[bold]fasttrain-data index 'https://example.org/cats-{000000..000146}.tar'[/]",
)(index_tars)


@app.command(epilog="Example:\n\n[bold]fasttrain-data verify data/digits[/]")
def verify(path: Shards, workers: Workers = None) -> None:
    """Hash every shard, decode every image, check every label, count copies."""
    if holds_tars(str(path)):
        with progress_bar() as progress:
            tars = verify_tars(str(path), workers=workers, progress=progress)
        print(f"{path}: sound, {summary_of_tars(tars)}")
        return
    with progress_bar() as progress:
        found = run_verification(path, workers=workers, progress=progress)
    print(f"{path}: sound, {summary(found.index)}")
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
    force: Annotated[bool, typer.Option("--force", help="Replace other shard sets.")] = False,
    workers: Workers = None,
) -> None:
    """Cut a shard set in two, every class in the same proportion."""
    with progress_bar() as progress:
        made = split_set(
            path,
            first,
            second,
            share=share,
            seed=seed,
            force=force,
            workers=workers,
            progress=progress,
        )
    for out, index in zip((first, second), made, strict=True):
        print(f"{out}: {summary(index)}")


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
    console = Console(markup=False, highlight=False)
    for table in tables(index):
        console.print(table)


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
