"""The kinds of files that are read, each with its reader: it raises what is not its own error."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from fasttrain_data import DataError, Index, Options, load_index, parse_index, run_conversion
from fasttrain_data.images import BadImage, Wanted, read_header, read_pixels
from fasttrain_data.indexing import run_indexing
from fasttrain_data.reader import decode_record, read_records
from fasttrain_data.records import Format, encode_image
from fasttrain_data.sources import open_source
from fasttrain_data.tar_index import (
    RECORDS_NAME,
    decode_file,
    load_tar_index,
    parse_tar_index,
    read_rows,
)
from tests.hostile import files, mutations
from tests.hostile.mutations import Shape

OPTIONS = Options(resolution=6, channels=3, images_per_shard=4)


class Target(NamedTuple):
    """A kind of file.

    Attributes:
        name: what it is.
        samples: sound files.
        read: raises what the reader raises that is not its own error.
        shape: what is known of the format.
        megabytes: what reading one may take.
    """

    name: str
    samples: tuple[bytes, ...]
    read: Callable[[bytes], None]
    shape: Shape
    megabytes: int


def index_of_record(record: Format) -> Index:
    table = files.index_of({"shard-000000.tar": bytes(4096)}, 2, record=record)
    table["classes"] = [{"name": "a", "images": 2}, {"name": "b", "images": 0}]
    return Index.model_validate_json(json.dumps(table))


def shard_target(record: Format) -> Target:
    index = index_of_record(record)
    pixels = np.arange(2 * 108, dtype=np.uint8).reshape(2, 6, 6, 3)
    if record == "raw":
        images = files.npy("|u1", np.ascontiguousarray(pixels.transpose(0, 3, 1, 2)))
        labels = files.npy("<i4", np.array([0, 1], np.int32))
        parts = [files.member("0.images.npy", images), files.member("0.labels.npy", labels)]
    else:
        parts = []
        for key, each in enumerate(pixels):
            parts += [files.member(f"{key}.{record}", encode_image(each, record))]
            parts += [files.member(f"{key}.cls", b"0")]

    def read(data: bytes) -> None:
        try:
            for each in read_records(io.BytesIO(data), index, name="x"):
                decode_record(each, index, name="x")
        except DataError as error:
            look_at(error)

    return Target(f"shard of {record}", (files.tar(*parts),), read, mutations.TAR, 70)


def tars_target() -> Target:
    """A tar of others, indexed and then read as training does."""
    picture = files.image()
    parts = [
        files.member(f"{n}.png", picture) + files.member(f"{n}.cls", b"%d" % n) for n in (0, 1)
    ]

    def read(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "in.tar"
            path.write_bytes(data)
            try:
                out = run_indexing(str(path), out=Path(folder) / "out", workers=1).folder
                index = load_tar_index(out)
                assert index is not None
                view = index.view(resolution=6, channels=3)
                with (out / RECORDS_NAME).open("rb") as records:
                    rows, keys = read_rows(records, index.shards[0])
                for key, (offset, size, _) in zip(keys, rows.tolist(), strict=True):
                    try:
                        decode_file(data[offset : offset + size], view, key)
                    except DataError as error:
                        look_at(error)
            except DataError as error:
                look_at(error)

    return Target("WebDataset's tar", (files.tar(*parts),), read, mutations.TAR, 200)


def tar_index_target() -> Target:
    """An index of tars that came with them, and its rows."""
    table = {
        "tars_version": 1,
        "classes": [{"name": "a", "images": 1}],
        "images": 1,
        "shards": [{"name": "x.tar", "images": 1, "bytes": 9999, "sha256": "0" * 64, "length": 17}],
        "records_bytes": 17,
        "records_sha256": "0" * 64,
        "content_sha256": "0" * 64,
        "options": {},
    }

    def read(data: bytes) -> None:
        try:
            index = parse_tar_index(data, "x")
            index.view(resolution=6, channels=3)
            for shard in index.shards:
                read_rows(io.BytesIO(data), shard)
        except DataError as error:
            look_at(error)

    return Target("index of tars", (json.dumps(table).encode(),), read, JSON, 100)


def picture_target(name: str, samples: tuple[bytes, ...], shape: Shape) -> Target:
    def read(data: bytes) -> None:
        for wanted in (
            Wanted(channels=3, resolution=6),
            Wanted(channels=1, resolution=6, crop="adm"),
        ):
            try:
                read_header(io.BytesIO(data))
                read_pixels(io.BytesIO(data), wanted)
            except BadImage as error:
                look_at(error)

    return Target(name, samples, read, shape, 1536)


def look_at(error: BaseException) -> None:
    """An error is one printable line. A decoder's MemoryError becomes one too; here it means that
    the decoder asked for more than it may."""
    line, cause = str(error), error
    if not line.isprintable() or len(line) > 1000:
        raise AssertionError(f"not one printable line: {line!r}")
    while cause is not None:
        if isinstance(cause, MemoryError):
            raise cause
        cause = cause.__cause__ or cause.__context__  # type: ignore[assignment]


def source_target(
    name: str,
    file: str,
    samples: tuple[bytes, ...],
    shape: Shape,
    *,
    beside: dict[str, bytes] | None = None,
    wrap: Callable[[bytes], bytes] = bytes,
    megabytes: int = 200,
) -> Target:
    """A file that is converted on its own, or `beside` others in a folder."""

    def read(data: bytes) -> None:
        with tempfile.TemporaryDirectory() as folder:
            root = Path(folder) / "in"
            for path, content in {**(beside or {}), file: wrap(data)}.items():
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                (root / path).write_bytes(content)
            source = root if beside is not None else root / file
            try:
                run_conversion(source, Path(folder) / "out", OPTIONS, max_bad=10**6, workers=1)
                load_index(Path(folder) / "out")
                open_source(source).layout(None, None, lambda *_: None, lambda *_: None)
            except DataError as error:
                look_at(error)

    return Target(name, samples, read, shape, megabytes)


def squeeze(data: bytes) -> bytes:
    return gzip.compress(data, 1)


def words(text: str) -> Shape:
    return Shape(words=tuple(text.encode("latin1").split()) + mutations.NAMES)


JSON = words(
    r'[ ] { } , : "" null -1 1e999 NaN true 99999999999999999999 "\ud800" "\n\u001b" [[ "a"'
)
CSV = Shape(
    words=(
        b",",
        b";",
        b'"',
        b"\n",
        b"\t",
        b"\r",
        b"\0",
        b"\xef\xbb\xbf",
        b"-1",
        b"file_name",
        b"label",
        b"9" * 20,
    )
)
PICKLE = words(
    "\x96\xff\xff\xff\xff\x00\x00\x00 cos\nsystem\n c_codecs\nencode\n ] } ( . R b T\xff"
)
PARQUET = words("PAR1 bytes image label binary \xff\xff\xff\xff\x07 \x15\xfe\xff\xff\xff\x0f")


def read_index(data: bytes) -> None:
    try:
        parse_index(data, "x")
    except DataError as error:
        look_at(error)
