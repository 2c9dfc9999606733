"""Hugging Face's image tables: parquet files with a column of {bytes, path} and one of labels.

A conversion reads items in shuffled order, and a table can only be read by groups of rows; so the
encoded images are copied once, group by group, to a temporary file, and read from there.

pyarrow decompresses what a page claims, and repeats what a dictionary holds as often as it says: a
kilobyte can ask for terabytes. So the copy is made by a process of its own with bounds.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError, shown
from fasttrain_data.images import BadImage
from fasttrain_data.pool import apart, bound
from fasttrain_data.samples import is_hidden
from fasttrain_data.sources.base import (
    EncodedSource,
    Span,
    listing_hash,
    read_span,
    times,
)
from fasttrain_data.sources.columns import Columns, read_columns
from fasttrain_data.sources.names import class_order
from fasttrain_data.sources.numbers import LARGEST, classes_of
from fasttrain_data.sources.place import DATASET_JSON, Place
from fasttrain_data.sources.selection import Selection
from fasttrain_data.tar import MAX_MEMBER_BYTES

__all__ = ["ParquetSource", "parquet_files"]

MAX_TABLE_MEMORY = 4 << 30
MAX_UNPACKED_BYTES, MOST_UNPACKED = 1 << 30, 20
"""Images may take a GiB and 20 times the size of their tables on disk."""
MIN_ROW_BYTES = 16
_ROWS = 256
_SPLIT = re.compile(r"(^|/)(train|test|validation|valid|val|dev)([-_./]|$)")


def parquet_files(folder: Path, split: str | None) -> list[Path]:
    """The split's files, in order: named `SPLIT.parquet` or `SPLIT-...` in folders of any depth, or
    in a folder of that name; all files when none is named after a split. Raises DataError when
    there are none."""
    files = sorted(file for file in folder.rglob("*.parquet") if file.is_file())
    names = {file: file.relative_to(folder).as_posix() for file in files}
    files = [file for file in files if not is_hidden(names[file])]
    wanted = split or "train"
    named = re.compile(rf"(^|/){re.escape(wanted)}([-_.][^/]*)?(/|\.parquet$|$)")
    found = [file for file in files if named.search(names[file])]
    others = {match[2] for file in files if (match := _SPLIT.search(names[file]))}
    if found or (not others and split in (None, "train")):
        return found or files
    there = f"it has {', '.join(sorted(others))}" if others else "its files are of no split"
    raise DataError(f"{folder} has no parquet files of the split {wanted}: {there}, see --split")


class ParquetSource(EncodedSource):
    """Rows in the order of the files. A row without image bytes is a bad file."""

    options = frozenset({"split", "label_column"})

    @classmethod
    def opened(cls, place: Place) -> ParquetSource | None:
        path, chosen = place.path, place.chosen
        if place.head[:4] == b"PAR1":
            return cls([path], str(path), chosen)
        tables = place.holds("*.parquet", "*/*.parquet") and not place.has(DATASET_JSON)
        if not tables or place.has_images:
            return None
        return cls(parquet_files(path, chosen.split), str(path), chosen)

    def __init__(self, files: list[Path], name: str, chosen: Selection | None = None) -> None:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise DataError("parquet tables need pyarrow: pip install pyarrow") from error
        self.title = name
        chosen = chosen or Selection()
        with tempfile.TemporaryFile() as rows:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115
            found, texts = apart(
                lambda: _copy_all(files, name, chosen, self._spool, rows), f"reading {name}"
            )
            columns = Columns(*found)
            table = np.fromfile(rows, np.int64).reshape(-1, 3)
        if not len(table):
            raise DataError(f"no images in {name}")
        self._rows = np.flatnonzero(table[:, 2] >= 0)
        if not len(self._rows):
            raise DataError(f"no row of {name} has a label: for one class, --label-column none")
        self.unlabelled = [
            (f"row {row}", f"no label in the column {shown(columns.label)}")
            for row in np.flatnonzero(table[:, 2] < 0)
        ]
        table = table[self._rows]
        self.classes, notes = _classes(table, columns, texts, name)
        self._spans, self.labels = table[:, :2], table[:, 2]
        self.notes = [*columns.notes(name), *notes]
        self._tables = files
        self.identity = {
            "kind": "parquet",
            "name": shown(os.path.basename(name)),
            "files": len(files),
            "listing_sha256": listing_hash((file.name, file.stat().st_size) for file in files),
        }

    def state(self) -> str:
        return times(self._tables)

    def member(self, item: int) -> str:
        return f"row {self._rows[item]}"

    @contextmanager
    def open(self, item: int) -> Iterator[IO[bytes]]:
        offset, size = self._spans[item].tolist()
        if size < 0:
            raise BadImage("no image bytes in the row")
        yield read_span(self._spool.fileno(), Span(offset, size))


def _classes(
    table: npt.NDArray[np.int64], columns: Columns, texts: list[str], name: str
) -> tuple[list[str], list[str]]:
    """Class names, and lines that a user should see; numbers in the table become labels: those of
    texts in the order of the names."""
    if columns.label is None:
        return ["images"], []
    if columns.texts:
        names = sorted(texts, key=class_order)
        rank = {text: place for place, text in enumerate(names)}
        table[:, 2] = np.asarray([rank[text] for text in texts])[table[:, 2]]
        return names, []
    if columns.names is None:
        numbers, places = np.unique(table[:, 2], return_inverse=True)
        names, labels, notes = classes_of(numbers.tolist(), f"{name}: {shown(columns.label)}")
        table[:, 2] = np.asarray([labels[number] for number in numbers.tolist()])[places]
        return names, notes
    most = int(table[:, 2].max())
    if most >= len(columns.names):
        raise DataError(f"{name} has the label {most} and {len(columns.names)} class names")
    return columns.names, []


def _copy_all(
    files: Sequence[Path], name: str, chosen: Selection, spool: IO[bytes], rows: IO[bytes]
) -> tuple[tuple[Any, ...], list[str]]:
    """Copy the images of all tables to `spool`, and to `rows` an offset, a size (-1: none) and a
    label (-1: none) each. Returns the columns and, where labels are texts, those by their numbers
    in `rows`. Raises DataError."""
    first: Columns | None = None
    texts: dict[str, int] = {}
    try:
        size = sum(file.stat().st_size for file in files)
        bound(memory=MAX_TABLE_MEMORY, file=MAX_UNPACKED_BYTES + MOST_UNPACKED * size)
        for file in files:
            columns = _copy(file, first, chosen, spool, rows, texts)
            first = first or columns
        spool.flush()
        rows.seek(0)
    except DataError:
        raise
    except MemoryError as error:
        raise DataError(
            f"{file} takes more memory to read than is allowed ({MAX_TABLE_MEMORY >> 30} GiB at "
            "most): write it with fewer rows in a group"
        ) from error
    except Exception as error:  # pyarrow raises many types on damaged files
        if isinstance(error, OSError) and error.errno:  # and this one without a number
            raise DataError(f"cannot copy {name}: {error.strerror}") from error
        raise DataError(f"{file} is not a sound table: {_line(error)}") from error
    assert first is not None
    return tuple(first), list(texts)  # plain, so that no class is unpickled


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _copy(
    file: Path,
    first: Columns | None,
    chosen: Selection,
    spool: IO[bytes],
    rows: IO[bytes],
    texts: dict[str, int],
) -> Columns:
    """Append a table's images; its columns, which must agree with those of the first."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as table:
        if table.metadata.num_rows > file.stat().st_size // MIN_ROW_BYTES:
            raise DataError(
                f"{file} claims {table.metadata.num_rows} rows: it is too small for them"
            )
        columns = read_columns(table.schema_arrow, file, chosen.label_column)
        if first is not None:
            columns.check_agrees(first)
        image, label = columns.image, columns.label
        row = 0
        wanted = [image] if label is None else [image, label]
        for batch in table.iter_batches(_ROWS, columns=wanted, use_threads=False):
            column = batch.column(image)
            if pyarrow.types.is_struct(column.type):
                column = column.field("bytes")
            spans = []
            for data in column:
                content = data.as_py()
                spans.append((spool.tell(), -1 if content is None else len(content)))
                if content is not None and len(content) <= MAX_MEMBER_BYTES:
                    spool.write(content)
            values = [0] * len(column) if label is None else batch.column(label).to_pylist()
            numbers = [_number(value, columns, texts) for value in values]
            if None in numbers and chosen.unlabelled == "refuse":
                place = numbers.index(None)
                raise DataError(
                    f"{file}: the column {shown(label)} holds no class numbers or names: row "
                    f"{row + place} has {shown(values[place])[:80]}; --unlabelled skip leaves such "
                    "rows out, --label-column none takes no labels"
                )
            found = [
                (*span, -1 if number is None else number)
                for span, number in zip(spans, numbers, strict=True)
            ]
            rows.write(np.asarray(found, np.int64).tobytes())
            row += len(found)
        return columns


def _number(value: object, columns: Columns, texts: dict[str, int]) -> int | None:
    """A label's number; of a text, the number in `texts`; None when it is none."""
    if isinstance(value, bool):
        value = str(value).lower()
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if columns.texts:
        return texts.setdefault(value, len(texts)) if isinstance(value, str) and value else None
    return value if type(value) is int and 0 <= value <= LARGEST else None
