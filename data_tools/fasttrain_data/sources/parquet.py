"""Hugging Face's image tables: parquet files with a column of {bytes, path} and one of labels.

A conversion reads items in shuffled order, and a table can only be read by groups of rows; so the
encoded images are copied once, group by group, to a temporary file, and read from there.

pyarrow decompresses what a page claims, and repeats what a dictionary holds as often as it says: a
kilobyte can ask for terabytes. So the copy is made by a process of its own with bounds.
"""

from __future__ import annotations

import os
import re
import resource
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from fasttrain_data.errors import DataError, shown
from fasttrain_data.images import BadImage
from fasttrain_data.pool import apart
from fasttrain_data.sources.base import (
    EncodedSource,
    Span,
    listing_hash,
    read_span,
    times,
)
from fasttrain_data.tables import read_json
from fasttrain_data.tar import MAX_MEMBER_BYTES

__all__ = ["ParquetSource", "parquet_files"]

MAX_TABLE_MEMORY = 4 << 30
MAX_UNPACKED_BYTES, MOST_UNPACKED = 1 << 30, 20
"""Images may take a GiB and 20 times the size of their tables on disk."""
MIN_ROW_BYTES = 16
_ROWS = 256


def parquet_files(folder: Path, split: str) -> list[Path]:
    """The split's files, in order: named `SPLIT.parquet` or `SPLIT-...` in folders of any depth, or
    in a folder of that name; all files when none is named after a split."""
    files = sorted(file for file in folder.rglob("*.parquet") if file.is_file())
    named = re.compile(rf"(^|/){re.escape(split)}([-_.][^/]*)?(/|\.parquet$|$)")
    wanted = [f for f in files if named.search(f.relative_to(folder).as_posix())]
    others = re.compile(r"(^|/)(train|test|validation|valid)([-_./]|$)")
    if not wanted and not any(others.search(f.relative_to(folder).as_posix()) for f in files):
        return files
    return wanted


class ParquetSource(EncodedSource):
    """Rows in the order of the files. A row without image bytes is a bad file."""

    def __init__(self, files: list[Path], name: str) -> None:
        try:
            import pyarrow  # noqa: F401
        except ImportError as error:
            raise DataError("parquet tables need pyarrow: pip install pyarrow") from error
        self.title = name
        with tempfile.TemporaryFile() as rows:
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115
            names, texts = apart(
                lambda: _copy_all(files, name, self._spool, rows), f"reading {name}"
            )
            table = np.fromfile(rows, np.int64).reshape(-1, 3)
        if not len(table):
            raise DataError(f"no images in {name}")
        if texts:
            names = sorted(texts)
            rank = {text: place for place, text in enumerate(names)}
            table[:, 2] = np.asarray([rank[text] for text in texts])[table[:, 2]]
        number = int(table[:, 2].max()) + 1
        if names is not None and number > len(names):
            raise DataError(f"{name} has the label {number - 1} and {len(names)} class names")
        self.classes = names or [str(label) for label in range(number)]
        self._spans, self.labels = table[:, :2], table[:, 2]
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
        return f"row {item}"

    @contextmanager
    def open(self, item: int) -> Iterator[IO[bytes]]:
        offset, size = self._spans[item].tolist()
        if size < 0:
            raise BadImage("no image bytes in the row")
        yield read_span(self._spool.fileno(), Span(offset, size))


def _copy_all(
    files: Sequence[Path], name: str, spool: IO[bytes], rows: IO[bytes]
) -> tuple[list[str] | None, list[str]]:
    """Copy the images of all tables to `spool`, and to `rows` an offset, a size (-1: none) and a
    label each. Returns the class names that a table declares, if one does, and, where labels are
    texts, those by their numbers in `rows`. Raises DataError."""
    names: list[str] | None = None
    texts: dict[str, int] = {}
    try:
        _bound(sum(file.stat().st_size for file in files))
        for file in files:
            names = _copy(file, spool, rows, texts) or names
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
    return names, list(texts)


def _bound(size: int) -> None:
    """Bound the memory of this process, and the files that it writes."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    for limit, most in (
        (resource.RLIMIT_AS, used + MAX_TABLE_MEMORY),
        (resource.RLIMIT_FSIZE, MAX_UNPACKED_BYTES + MOST_UNPACKED * size),
    ):
        _, hard = resource.getrlimit(limit)
        resource.setrlimit(limit, (most if hard < 0 else min(most, hard), hard))


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _copy(file: Path, spool: IO[bytes], rows: IO[bytes], texts: dict[str, int]) -> list[str] | None:
    """Append a table's images; the class names that it declares, if it does."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as table:
        if table.metadata.num_rows > file.stat().st_size // MIN_ROW_BYTES:
            raise DataError(
                f"{file} claims {table.metadata.num_rows} rows: it is too small for them"
            )
        schema = table.schema_arrow
        image, label = _columns(schema, file)
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
            numbers = [0] * len(column) if label is None else batch.column(label).to_pylist()
            if all(isinstance(n, str) for n in numbers):
                numbers = [texts.setdefault(str(n), len(texts)) for n in numbers]
            elif texts:
                raise DataError(f"{file}: the column {label} holds texts in some rows only")
            if not all(type(n) is int and 0 <= n < 1_000_000 for n in numbers):
                raise DataError(f"{file}: the column {label} holds no class numbers or names")
            found = [(*span, number) for span, number in zip(spans, numbers, strict=True)]
            rows.write(np.asarray(found, np.int64).tobytes())
        return _class_names(schema, label, file)


def _columns(schema: Any, file: Path) -> tuple[str, str | None]:
    """The image column and the label column, or None for one class."""
    import pyarrow

    def holds_images(kind: Any) -> bool:
        if pyarrow.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0
        return bool(pyarrow.types.is_binary(kind) or pyarrow.types.is_large_binary(kind))

    images = [field.name for field in schema if holds_images(field.type)]
    image = next((name for name in ("image", "img", *images[:1]) if name in images), None)
    if image is None:
        raise DataError(f"{file} has no column of images, {{bytes, path}} or binary")
    known = ("label", "labels", "fine_label", "class", "cls")
    return image, next((name for name in known if name in schema.names), None)


def _class_names(schema: Any, label: str | None, file: Path) -> list[str] | None:
    """Names of a Hugging Face ClassLabel, from the table's metadata."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None or label is None:
        return None
    try:
        names = read_json(stored, file)["info"]["features"][label]["names"]
    except (KeyError, TypeError):
        return None
    if not (isinstance(names, list) and names and all(isinstance(n, str) and n for n in names)):
        return None
    unique: list[str] = []
    seen: set[str] = set()
    for number, name in enumerate(names):
        unique.append(f"{name} ({number})" if name in seen else name)  # ImageNet has two cranes
        seen.add(name)
    return unique
