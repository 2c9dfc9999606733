"""From a source of images to a shard set: shuffle, decode, write, and let it appear whole.

    index = convert("digits", "data/digits")
    index = convert("photos", "data/photos64", resolution=64, max_bad=10)

The same source and options give the same records in the same order with the same pixels, whatever
the number of processes and however often the conversion was killed and started again, and the same
bytes with the same versions of Pillow and zlib.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fasttrain_data.class_names import name_classes
from fasttrain_data.errors import DataError
from fasttrain_data.index import (
    FORMAT_VERSION,
    ClassInfo,
    Index,
    ShardInfo,
    load_index,
)
from fasttrain_data.options import Options
from fasttrain_data.pool import in_order, processes
from fasttrain_data.records import MAX_RECORD_BYTES
from fasttrain_data.samples import Fields
from fasttrain_data.sources import FolderSource, ShardSource, Source, open_source
from fasttrain_data.summary import first_of
from fasttrain_data.task import Task, identity
from fasttrain_data.writer import (
    BadFile,
    Shard,
    Staging,
    is_replaceable,
    kept,
    remove_journals,
    tally,
)

__all__ = ["Conversion", "Progress", "convert", "run_conversion"]

FEW = 16
"""Images of which each may be of a class of its own."""

# Called with what is being done, how many items are done, and how many there are.
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Conversion:
    """The outcome.

    Attributes:
        already_there: whether the set was.
        bad_files: the files left out, and why.
        passed_over: files that are no images by their names, by ending.
        notes: lines that a user should see.
    """

    index: Index
    already_there: bool
    bad_files: tuple[tuple[str, str], ...] = ()
    passed_over: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


class _BadFiles:
    """Counts what is left out, and stops when it is more than the user allowed."""

    def __init__(self, allowed: int, unlabelled: Sequence[tuple[str, str]]) -> None:
        self.allowed, self._known = allowed, len(unlabelled)
        self.files: list[BadFile] = [(name, name, why) for name, why in unlabelled]

    def add(self, files: Iterable[BadFile]) -> None:
        self.files += files
        bad = self.files[self._known :]
        if len(bad) > self.allowed:
            first, _, why = bad[0]
            raise DataError(
                f"{first}: {why} (bad files: {len(bad)}, allowed: {self.allowed}; remove it, or "
                "allow more with --max-bad N)"
            )


def convert(
    source: str | Path,
    out: str | Path,
    *,
    max_bad: int = 0,
    workers: int | None = None,
    force: bool = False,
    **options: Any,
) -> Index:
    """Write the images of `source` as a shard set at `out` and return its index.

    Args:
        source: "digits", or a folder or file of images of any kind that `open_source` knows.
        out: the folder to make. A set made from the same source and options is kept as it is.
        max_bad: number of unreadable files to leave out; one more is an error.
        workers: processes; by default as many as cores, one for small sources. They change nothing.
        force: replace another shard set at `out`.
        options: the fields of `Options`.

    Raises:
        DataError: one line naming the file and the remedy: bad images, no write access, full disk.
            Nothing is left at `out` then.
    """
    return run_conversion(
        source, out, Options(**options), max_bad=max_bad, workers=workers, force=force
    ).index


def run_conversion(
    source: str | Path | Source,
    out: str | Path,
    options: Options | None = None,
    *,
    max_bad: int = 0,
    workers: int | None = None,
    force: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """As `convert`, with a progress callback and the list of files that were left out."""
    out, options = Path(out), options or Options()
    options.check()
    for name, value, least in (("max-bad", max_bad, 0), ("workers", workers, 1)):
        if value is not None and value < least:
            raise DataError(f"--{name} is {value}: it must be at least {least}")
    report: Progress = progress or (lambda *_: None)
    opened = source if isinstance(source, Source) else _opened(source, options)
    if options.class_names is not None:
        name_classes(opened, options.class_names)
    root = opened.root if isinstance(opened, FolderSource | ShardSource) else None
    if root is not None and out.resolve().is_relative_to(root.resolve()):
        raise DataError(f"{out} is inside the folder of images: choose another place")
    if options.images_per_shard is None:
        options = Options(**{**asdict(options), "images_per_shard": opened.images_per_shard})
    existing = _existing(out, opened, options, force)
    if existing is not None:
        return Conversion(existing, already_there=True, notes=tuple(opened.notes))

    bad, several = _BadFiles(max_bad, opened.unlabelled), list[str]()
    with warnings.catch_warnings():
        # Pillow warns on its own terms, of odd EXIF data too; here images are refused or accepted.
        warnings.filterwarnings("ignore", module=r"PIL\.")
        layout = opened.layout(
            options.resolution,
            options.channels,
            # The name within the source is what a list that moves with the set can hold.
            lambda name, why: bad.add([(name, name.removeprefix(_title(opened)), why)]),
            lambda done, total: report("reading headers", done, total),
        )
        if options.record == "raw" and layout.resolution**2 * layout.channels > MAX_RECORD_BYTES:
            raise DataError(f"--record raw: an image would take more than {MAX_RECORD_BYTES} bytes")
        task = Task(opened, layout, options)
        try:
            index = _write(task, out, bad, several, force, report, workers)
        except OSError as error:  # of writing only: a file that cannot be read is a bad file
            raise DataError(f"cannot write {out}: {error.strerror or error}{kept(out)}") from error
    files = tuple((name, why) for name, _, why in bad.files)
    notes = (*opened.notes, *_odd(index), *first_of(several))
    return Conversion(index, False, files, opened.passed_over, notes)


def _odd(index: Index) -> list[str]:
    """What looks like labels that are numbered from 1, or are none."""
    first, *rest = index.classes
    if rest and first.name == "0" and not first.images and all(info.images for info in rest):
        return ["no image has the class 0, all others have some: are the labels numbered from 1?"]
    if rest and index.images >= FEW and all(info.images <= 1 for info in index.classes):
        return ["no two images have the same class: are the labels ids, or names of files?"]
    empty = sum(not info.images for info in index.classes)
    by_number = all(info.name == str(label) for label, info in enumerate(index.classes))
    if by_number and 2 * empty > len(index.classes):
        return [
            f"{empty:,} of {len(index.classes):,} classes have no image: labels are numbers of "
            "classes, up to the largest; write years or ids as names, such as y2004"
        ]
    return []


def _opened(source: str | Path, options: Options) -> Source:
    return open_source(
        source,
        split=options.split,
        label_column=options.label_column,
        labels=None if options.labels is None else Path(options.labels),
        unlabelled=options.unlabelled,
        follow_links=options.follow_links,
        fields=Fields(label=options.label_field, image=options.image_key),
    )


def _title(source: Source) -> str:
    return f"{getattr(source, 'title', '')}/"


def _existing(out: Path, source: Source, options: Options, force: bool) -> Index | None:
    """Return the set at `out` when it is the wanted one; raise when `out` may not be written."""
    if not out.exists() and not out.is_symlink():
        return None
    if not out.is_dir():
        raise DataError(f"{out} exists and is not a folder: choose another place")
    if not any(out.iterdir()):
        return None
    if not is_replaceable(out):
        raise DataError(f"{out} exists and is not a shard set: choose another folder")
    if force:
        return None
    try:
        index = load_index(out)
        index.check_files(out)
    except DataError as error:
        raise DataError(f"{error}; or replace it with --force") from error
    # Options that are newer than the set have their defaults there.
    made_with = {**Options().recorded(), **index.options}
    if (index.source, made_with) != (identity(source), options.recorded()):
        raise DataError(
            f"{out} holds shards of another source or other options: "
            "choose another folder, or replace it with --force"
        )
    remove_journals(out)
    return index


def _write(
    task: Task,
    out: Path,
    bad: _BadFiles,
    several: list[str],
    force: bool,
    report: Progress,
    workers: int | None,
) -> Index:
    layout, source, options = task.layout, task.source, task.options

    def work(number: int) -> tuple[int, list[BadFile], list[str]]:
        shard = staging.finished(number)
        if shard is None:
            found, more = list[BadFile](), list[str]()
            items = task.items(number, found, more)
            shard = staging.write(number, options.record, items, found, more)
        return len(shard.labels), shard.bad, shard.several

    def make_index(shards: Iterable[tuple[Shard, ShardInfo]]) -> Index:
        content, images, infos = tally(shards, layout.resolution, layout.channels)
        return Index(
            format_version=FORMAT_VERSION,
            resolution=layout.resolution,
            channels=1 if layout.channels == 1 else 3,
            record=options.record,
            classes=tuple(
                ClassInfo(name=name, images=images[label])
                for label, name in enumerate(source.classes)
            ),
            images=images.total(),
            shards=infos,
            content_sha256=content.hexdigest(),
            source=identity(source),
            options=options.recorded(),
            skipped=dict(sorted(Counter(why for _, _, why in bad.files).items())),
        )

    with Staging(out, task.fingerprint()) as staging:
        images = 0
        report("writing shards", 0, len(task.order))
        with closing(in_order(work, task.shards, processes(workers, len(layout.items)))) as done:
            for number, (written, left_out, more) in enumerate(done):
                images += written
                several += more
                bad.add(tuple(row) for row in left_out)  # type: ignore[misc]  # of a journal: lists
                report("writing shards", task.starts[number + 1], len(task.order))
        if not images:
            raise DataError(f"no readable images for {out}")
        skipped = [(member, why) for _, member, why in bad.files]
        return staging.commit(task.shards, make_index, skipped, replace=force)
