"""From the tars of others to their index, in one pass over the bytes.

    made = run_indexing("sets/cats-{000000..000146}.tar")
    made.index.images, made.folder

A journal of each finished tar makes the same command go on after a crash. The index appears whole
or not at all.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fasttrain_data.errors import DataError
from fasttrain_data.index_folder import IndexFolder, Servers, Task
from fasttrain_data.pool import in_order
from fasttrain_data.samples import Fields
from fasttrain_data.tar_index import TarIndex, load_tar_index
from fasttrain_data.tars import INDEX_FOLDER, Tars, cached_index, parts_of

__all__ = ["Indexing", "run_indexing"]

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Indexing:
    """The outcome: the index, the folder it is in, and whether it was there already."""

    index: TarIndex
    folder: Path
    already_there: bool


def run_indexing(
    spec: str,
    *,
    fields: Fields | None = None,
    out: Path | None = None,
    workers: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
    storage: Mapping[str, Any] | None = None,
) -> Indexing:
    """Index the tars that a user names, see `tars.py`.

    Args:
        fields: which members of a sample are its image and its label.
        out: the folder to make; by default `fasttrain-index` beside the tars of a folder, where
            that can be written, else in the user's cache.
        workers: processes; by default as many as cores. They change nothing.
        force: replace an index of other tars or fields.
        storage: options of fsspec's file system.

    Raises DataError in one line, and Unreachable for a server that does not answer.
    """
    fields = fields or Fields()
    if workers is not None and workers < 1:
        raise DataError(f"--workers is {workers}: it must be at least 1")
    servers = Servers(storage or {})
    tars = Tars.of(spec, servers.names)
    out = out or _default_folder(spec)
    task = Task(tars, fields, servers)
    existing = load_tar_index(out)
    if existing is not None and not force:
        if task.is_of(existing):
            return Indexing(existing, out, already_there=True)
        raise DataError(
            f"{out} is the index of other tars or fields: replace it with --force, or choose "
            "another folder with --out"
        )
    if existing is None and out.exists() and any(out.iterdir()):
        raise DataError(f"{out} exists and is not an index: choose another folder with --out")
    try:
        index = _write(task, out, workers or len(os.sched_getaffinity(0)), progress)
    except OSError as error:
        where = error.filename or out
        raise DataError(f"cannot index {spec}: {where}: {error.strerror or error}") from error
    return Indexing(index, out, already_there=False)


def _default_folder(spec: str) -> Path:
    if len(parts_of(spec)) == 1 and os.path.isdir(spec):
        beside = Path(spec) / INDEX_FOLDER
        if beside.exists() or os.access(spec, os.W_OK):
            return beside
    return cached_index(spec)


def _write(task: Task, out: Path, workers: int, progress: Progress | None) -> TarIndex:
    tars = task.tars
    with IndexFolder(out, task.fingerprint()) as folder:

        def work(number: int) -> int:
            journal = folder.journal(number, task.state(tars.places[number]))
            if journal is None:
                journal = folder.read(number, task)
            return journal.images

        images = 0
        with closing(in_order(work, len(tars.places), workers)) as done:
            for number, count in enumerate(done):
                images += count
                if progress:
                    progress("reading tars", number + 1, len(tars.places))
        if not images:
            folder.clear()
            raise DataError(f"no images in {tars.spec}: looked for members such as KEY.jpg")
        return folder.finish(task)
