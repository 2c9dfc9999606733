"""`fasttrain-data index`: the tars of others, to be trained on as they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fasttrain_data.errors import DataError, shown
from fasttrain_data.indexing import run_indexing
from fasttrain_data.progress import progress_bar
from fasttrain_data.samples import Fields
from fasttrain_data.tar_index import TarIndex

__all__ = ["ImageKey", "LabelField", "index", "summary_of_tars"]

SHOWN = 10
LabelField = Annotated[
    str | None,
    typer.Option(
        help="Of WebDataset's tars: the field of KEY.json that is the label, or with a dot the "
        "member whose text it is, such as .txt.",
        show_default="KEY.cls",
    ),
]
ImageKey = Annotated[
    str | None,
    typer.Option(
        help="Of WebDataset's tars with several images a sample: which, such as input.jpg.",
        show_default="the only one",
    ),
]


def index(
    paths: Annotated[
        list[str],
        typer.Argument(
            help="WebDataset's tars: a folder, a tar, a brace expansion such as "
            "'set-{000000..000146}.tar', or a URL of these.",
            show_default=False,
        ),
    ],
    label_field: LabelField = None,
    image_key: ImageKey = None,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder to make.",
            show_default="fasttrain-index beside the tars of a folder, else in ~/.cache",
        ),
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes.", show_default="one a core")
    ] = None,
    storage: Annotated[
        str, typer.Option(help="Options of fsspec's file system for URLs, as JSON.")
    ] = "{}",
    force: Annotated[bool, typer.Option("--force", help="Replace another index.")] = False,
) -> None:
    """Read WebDataset's tars once, to train on them as they are. After a crash the same command
    goes on."""
    spec = "::".join(paths)
    with progress_bar() as progress:
        made = run_indexing(
            spec,
            fields=Fields(label=label_field, image=image_key),
            out=out,
            workers=workers,
            force=force,
            progress=progress,
            storage=_options(storage),
        )
    before = "already there, " if made.already_there else ""
    print(f"{made.folder}: {before}{summary_of_tars(made.index)}")
    for what, counts in (
        ("left out", made.index.skipped),
        ("passed over, neither image nor label", made.index.passed_over),
    ):
        if counts:
            most = sorted(counts.items(), key=lambda row: (-row[1], row[0]))[:SHOWN]
            rows = ", ".join(f"{count} {shown(name)}" for name, count in most)
            print(f"{what}: {sum(counts.values())} ({rows})")
    if out is not None:
        print(f"train with data.index={out}")


def _options(text: str) -> dict[str, object]:
    try:
        table = json.loads(text)
    except ValueError:
        table = None
    if not isinstance(table, dict):
        raise DataError(f"--storage is {text}, not JSON such as '{{\"anon\": true}}'")
    return table


def summary_of_tars(index: TarIndex) -> str:
    """What an index has, in one line."""
    first = ", ".join(f"{shown(info.name)} {info.images:,}" for info in index.classes[:SHOWN])
    more = ", ..." if len(index.classes) > SHOWN else ""
    size = sum(info.bytes for info in index.shards)
    return (
        f"{index.images:,} images in {len(index.classes)} classes ({first}{more}), "
        f"{len(index.shards)} tars, {size:,} bytes"
    )
