"""Hugging Face's image tables: parquet files with a column of {bytes, path} and one of labels.

A conversion reads items in shuffled order, and a table can only be read by groups of rows; so the
encoded images are copied once, group by group, to a temporary file, and read from there.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np

from fasttrain_data.errors import DataError
from fasttrain_data.images import BadImage
from fasttrain_data.sources.base import EncodedSource, Span, listing_hash, read_span
from fasttrain_data.sources.folder import read_json

__all__ = ["ParquetSource", "parquet_files"]

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
        self._spool = tempfile.TemporaryFile()  # noqa: SIM115
        self._spans: list[Span | None] = []
        labels: list[int] = []
        names: list[str] | None = None
        try:
            for file in files:
                names = _copy(file, self._spool, self._spans, labels) or names
        except DataError:
            raise
        except OSError as error:
            raise DataError(f"cannot copy {name}: {error.strerror or error}") from error
        except Exception as error:  # pyarrow raises many types on damaged files
            raise DataError(f"{file} is not a sound table: {_line(error)}") from error
        self._spool.flush()
        if not labels:
            raise DataError(f"no images in {name}")
        number = max(labels) + 1
        if names is not None and number > len(names):
            raise DataError(f"{name} has the label {number - 1} and {len(names)} class names")
        self.classes = names or [str(label) for label in range(number)]
        self.labels = np.asarray(labels, np.int64)
        self.identity = {
            "kind": "parquet",
            "name": os.path.basename(name),
            "files": len(files),
            "listing_sha256": listing_hash((file.name, file.stat().st_size) for file in files),
        }

    def member(self, item: int) -> str:
        return f"row {item}"

    @contextmanager
    def open(self, item: int) -> Iterator[IO[bytes]]:
        span = self._spans[item]
        if span is None:
            raise BadImage("no image bytes in the row")
        yield read_span(self._spool.fileno(), span)


def _line(error: BaseException) -> str:
    return (str(error).splitlines() or [""])[0][:200]


def _copy(
    file: Path, spool: IO[bytes], spans: list[Span | None], labels: list[int]
) -> list[str] | None:
    """Append a table's images to the spool; the class names that it declares, if it does."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    with ParquetFile(file) as table:
        schema = table.schema_arrow
        image, label = _columns(schema, file)
        wanted = [image] if label is None else [image, label]
        for batch in table.iter_batches(_ROWS, columns=wanted):
            column = batch.column(image)
            if pyarrow.types.is_struct(column.type):
                column = column.field("bytes")
            for data in column:
                content = data.as_py()
                spans.append(None if content is None else Span(spool.tell(), len(content)))
                spool.write(content or b"")
            numbers = [0] * len(column) if label is None else batch.column(label).to_pylist()
            if not all(type(n) is int and 0 <= n < 1_000_000 for n in numbers):
                raise DataError(f"{file}: the column {label} holds other things than class numbers")
            labels += numbers
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
    names = {field.name for field in schema if pyarrow.types.is_integer(field.type)}
    return image, next((name for name in known if name in names), None)


def _class_names(schema: Any, label: str | None, file: Path) -> list[str] | None:
    """Names of a Hugging Face ClassLabel, from the table's metadata."""
    stored = (schema.metadata or {}).get(b"huggingface")
    if stored is None or label is None:
        return None
    try:
        names = read_json(stored, file)["info"]["features"][label]["names"]
    except (KeyError, TypeError):
        return None
    if isinstance(names, list) and names and all(isinstance(n, str) and n for n in names):
        return names
    return None
