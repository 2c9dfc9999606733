"""The index of tars that others wrote, so that they are trained on as they are: `index.json`, which
says what `index.json` of a shard set says, and `records.bin`, where each image lies.

    index = load_tar_index(Path("sets/cats/fasttrain-index"))
    view = index.view(resolution=64, channels=3)          # an Index, as a shard set has one

`records.bin` has for each tar its rows (offset, size, label) and then its keys, one a line. Images
have whatever size they have: a view says what is made of them, by the same arithmetic as a
conversion's.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import FailFast, Field, PrivateAttr, ValidationError, field_validator, model_validator

from fasttrain_data.errors import DataError
from fasttrain_data.images import BadImage, Crop, Wanted, read_pixels
from fasttrain_data.index import (
    FORMAT_VERSION,
    INDEX_NAME,
    MAX_INDEX_BYTES,
    MAX_INDEX_VALUES,
    ClassInfo,
    Index,
    Sha256,
    ShardInfo,
    _Frozen,
)
from fasttrain_data.tables import read_json
from fasttrain_data.tar import MAX_MEMBER_BYTES

__all__ = ["RECORDS_NAME", "ROW", "TarIndex", "TarInfo", "TarView", "load_tar_index"]
__all__ += ["decode_file", "parse_tar_index", "read_rows"]

RECORDS_NAME = "records.bin"
ROW = np.dtype([("offset", "<i8"), ("size", "<i4"), ("label", "<i4")])
MIN_SAMPLE_BYTES = 1024
"""A header block and a block of the image."""


class TarInfo(ShardInfo):
    """A tar: its name below the folder that all have in common, and its part of `records.bin`.

    Attributes:
        first, length: where that part lies, in bytes.
    """

    name: Annotated[str, Field(min_length=1, max_length=1000)]
    first: Annotated[int, Field(ge=0)] = 0
    length: Annotated[int, Field(ge=0)] = 0

    @property
    def remedy(self) -> str:
        return "copy it again, or index the changed set with `fasttrain-data index --force`"

    @field_validator("name")
    @classmethod
    def _below(cls, name: str) -> str:
        if not name.isprintable() or name.startswith("/") or ".." in name.split("/"):
            raise ValueError("not the name of a tar")
        return name


class TarView(Index):
    """The tars of an index as images of one size."""

    shards: Annotated[tuple[ShardInfo, ...], Field(min_length=1, strict=False), FailFast()]
    _wanted: Wanted = PrivateAttr()

    @property
    def least_bytes(self) -> int:
        return MIN_SAMPLE_BYTES

    @property
    def wanted(self) -> Wanted:
        """What is made of each image."""
        return self._wanted


class TarIndex(_Frozen):
    """The contents of `index.json` for tars of others.

    Attributes:
        empty: tars without images.
        content_sha256: over the tars' hashes and their rows.
        options: the fields that were read.
        records_bytes, records_sha256: of `records.bin`.
    """

    tars_version: Literal[1]
    classes: Annotated[tuple[ClassInfo, ...], Field(min_length=1, strict=False), FailFast()]
    images: Annotated[int, Field(ge=1)]
    shards: Annotated[tuple[TarInfo, ...], Field(min_length=1, strict=False), FailFast()]
    empty: Annotated[tuple[str, ...], Field(strict=False)] = ()
    records_bytes: Annotated[int, Field(ge=1)]
    records_sha256: Sha256
    content_sha256: Sha256
    options: dict[str, Any]
    skipped: dict[str, int] = Field(default_factory=dict)
    passed_over: dict[str, int] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _parts_agree(self) -> Self:
        for shard in self.shards:
            if shard.length < shard.images * ROW.itemsize or shard.length > self.records_bytes:
                raise ValueError(f"{shard.name}: {RECORDS_NAME} cannot hold its images")
        return self

    @property
    def records(self) -> TarInfo:
        """`records.bin` as a storage opens it."""
        return TarInfo(
            name=RECORDS_NAME,
            images=self.images,
            bytes=self.records_bytes,
            sha256=self.records_sha256,
        )

    def to_json(self) -> str:
        """Return the text of `index.json`."""
        return self.model_dump_json(indent=1) + "\n"

    def view(self, *, resolution: int, channels: int, crop: Crop = "center") -> TarView:
        """The images at a size. Its content hash is another at another size, channels or crop."""
        how = {"resolution": resolution, "channels": channels, "crop": crop}
        content = hashlib.sha256(f"{self.content_sha256} {sorted(how.items())}".encode())
        try:
            view = TarView(
                format_version=FORMAT_VERSION,
                resolution=resolution,
                channels=1 if channels == 1 else 3,
                record="png",
                classes=self.classes,
                images=self.images,
                shards=self.shards,
                content_sha256=content.hexdigest(),
                source={"kind": "tars", "content_sha256": self.content_sha256},
                options={**self.options, **how},
                skipped=self.skipped,
            )
        except ValidationError as error:
            raise DataError(f"not a valid index of tars ({_first(error)}): index again") from error
        view._wanted = Wanted(resolution=resolution, channels=view.channels, crop=crop)
        return view


def load_tar_index(folder: Path) -> TarIndex | None:
    """The index in a folder, or None when there is none. Raises DataError."""
    file = folder / INDEX_NAME
    if not file.is_file():
        return None
    try:
        with file.open("rb") as opened:
            return parse_tar_index(opened.read(MAX_INDEX_BYTES + 1), str(file))
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error


def parse_tar_index(text: bytes, file: str) -> TarIndex:
    """Check the text of an index of tars; `file` is used in errors. Raises DataError."""
    try:
        table = read_json(text, "it", most=MAX_INDEX_VALUES)
        return TarIndex.model_validate(table)
    except ValidationError as error:
        why = _first(error)
    except DataError as error:
        why = str(error)
    raise DataError(f"{file} is not a valid index of tars ({why}): index them again")


def _first(error: ValidationError) -> str:
    first = error.errors(include_input=False, include_url=False)[0]
    where = ".".join(map(str, first["loc"]))
    return f"{where + ': ' if where else ''}{' '.join(first['msg'].split())}"


def read_rows(file: BinaryIO, shard: TarInfo) -> tuple[npt.NDArray[Any], list[str]]:
    """The rows of a tar, [n] of ROW, and its keys, from an open `records.bin`. Raises DataError."""
    file.seek(shard.first)
    part = file.read(shard.length)
    size = shard.images * ROW.itemsize
    keys = part[size:].decode("utf-8", "backslashreplace").split("\n")
    if len(part) != shard.length or len(keys) != shard.images:
        raise DataError(f"{RECORDS_NAME} has no rows of the {shard.images} images of {shard.name}")
    rows = np.frombuffer(part, ROW, count=shard.images)
    ends = rows["offset"] + rows["size"]
    if (rows["offset"] < 0).any() or (rows["size"] < 0).any() or (ends > shard.bytes).any():
        raise DataError(f"{RECORDS_NAME} names bytes that {shard.name} does not have")
    if (rows["size"] > MAX_MEMBER_BYTES).any():
        raise DataError(f"{RECORDS_NAME} names an image of more than {MAX_MEMBER_BYTES >> 20} MiB")
    return rows, keys


def decode_file(data: bytes, view: TarView, where: str) -> npt.NDArray[np.uint8]:
    """Decode an image file to uint8 [H, W, C] as a view has it. Raises DataError with `where`."""
    try:
        return read_pixels(io.BytesIO(data), view.wanted)
    except BadImage as error:
        raise DataError(f"{where}: {error}") from error
