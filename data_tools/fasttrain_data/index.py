"""`index.json`: what a shard set holds, so that a reader needs no scan and can trust every byte.

    index = load_index("data/digits")
    index.resolution, index.channels, [c.name for c in index.classes], index.images

A set of latents says in `latents` what they were made of and how. The file is deterministic: no
times, no absolute paths. `content_sha256` is over the pixels (or latents) and labels in order, so
two sets with the same hash hold the same data, whatever they are stored as.
"""

from __future__ import annotations

import hashlib
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    FailFast,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from fasttrain_data.errors import DataError
from fasttrain_data.foreign import not_shards
from fasttrain_data.records import Stored
from fasttrain_data.tables import MAX_JSON_BYTES, read_json

__all__ = ["FORMAT_VERSION", "INDEX_NAME", "LATENTS_VERSION", "ClassInfo", "ContentHash"]
__all__ += ["MAX_CLASSES", "Index", "LatentInfo", "ShardInfo", "check_shard_file", "load_index"]
__all__ += ["parse_index"]

FORMAT_VERSION: Literal[2] = 2
LATENTS_VERSION: Literal[3] = 3
"""Of sets of latents, so that a program that knows none says so."""
INDEX_NAME = "index.json"
MAX_INDEX_BYTES = MAX_JSON_BYTES
MAX_INDEX_VALUES = 2 << 20
MAX_CLASSES = 500_000
"""What `MAX_INDEX_VALUES` has room for, beside the shards."""
MAX_CLASS_NAME = 1000
# The smallest record: a header block and a data block for the image, the same for the label.
MIN_RECORD_BYTES = 2048

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0)]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class ClassInfo(_Frozen):
    """A class: its name, and how many images have its label (its place in the list)."""

    name: Annotated[str, Field(min_length=1, max_length=MAX_CLASS_NAME)]
    images: Count

    @field_validator("name")
    @classmethod
    def _printable(cls, name: str) -> str:
        if not name.isprintable():  # it is printed, and could hold a terminal's escape codes
            raise ValueError("a class name may hold printable characters only")
        return name


class ShardInfo(_Frozen):
    """A shard: file name, number of images, size in bytes, SHA-256 of the file."""

    # A plain file name: no folders, no `..`, and nothing a shell or an URL opener would act on.
    name: Annotated[str, Field(pattern=r"^shard-[0-9]{6,9}\.tar$")]
    images: Annotated[int, Field(ge=1)]
    bytes: Annotated[int, Field(ge=1)]
    sha256: Sha256

    @property
    def remedy(self) -> str:
        """What to do about one that is not what its index says."""
        return "copy or convert it again"


class LatentInfo(_Frozen):
    """What an autoencoder made of images: for each channel mean and deviation of a normal
    distribution. Networks see scale * (draw - shift), by the autoencoder's own constants.

    Attributes:
        scale, shift: those constants.
        low: black as the autoencoder sees it; white is 1.
        flips: whether the mirror images' latents are stored, too.
        resolution, colours: pixels a side and channels of the images.
        vae_sha256: of the autoencoder's config and weights.
    """

    scale: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    shift: Annotated[float, Field(allow_inf_nan=False)]
    low: Literal[-1, 0]
    flips: bool
    resolution: Annotated[int, Field(ge=1, le=8192)]
    colours: Literal[1, 3]
    vae_sha256: Sha256


class Index(_Frozen):
    """The contents of `index.json`. Images are square, uint8, with 1 or 3 channels; latents are
    square, too, and `resolution` and `channels` are theirs."""

    format_version: Literal[2, 3]
    resolution: Annotated[int, Field(ge=1, le=8192)]
    channels: Annotated[int, Field(ge=1, le=64)]
    record: Stored
    latents: LatentInfo | None = None
    # The first fault is named: of a million, each would take memory.
    classes: Annotated[tuple[ClassInfo, ...], Field(min_length=1, strict=False), FailFast()]
    images: Annotated[int, Field(ge=1)]
    shards: Annotated[tuple[ShardInfo, ...], Field(min_length=1, strict=False), FailFast()]
    content_sha256: Sha256
    source: dict[str, Any]
    options: dict[str, Any]
    skipped: dict[str, int] = {}

    @model_validator(mode="after")
    def _known_kind(self) -> Self:
        if (self.record == "latents", self.format_version == 3) != (self.latents is not None,) * 2:
            raise ValueError("it does not say whether it holds images or latents")
        if self.latents is None and self.channels not in (1, 3):
            raise ValueError(f"channels: images have 1 or 3, not {self.channels}")
        return self

    @model_validator(mode="after")
    def _sums_agree(self) -> Self:
        for what, parts in (("shards", self.shards), ("classes", self.classes)):
            total = sum(part.images for part in parts)
            if total != self.images:
                raise ValueError(f"{what} add up to {total} images, not to {self.images}")
            if len({part.name for part in parts}) != len(parts):
                raise ValueError(f"a name occurs twice in {what}")
        for shard in self.shards:
            if shard.images * self.least_bytes > shard.bytes:
                raise ValueError(f"{shard.name}: {shard.bytes} bytes cannot hold its images")
        return self

    @property
    def bytes(self) -> int:
        """Size of all shards in bytes."""
        return sum(shard.bytes for shard in self.shards)

    @property
    def least_bytes(self) -> int:
        """What a record takes at least."""
        return self.pixel_bytes if self.record in ("raw", "latents") else MIN_RECORD_BYTES

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape of a decoded image, uint8 [C, H, W]; of latents that of the bytes of their means
        and deviations, float16 [K C, H, W], with 2 W columns."""
        planes, columns = self.channels, self.resolution
        if self.latents is not None:
            planes, columns = planes * (4 if self.latents.flips else 2), columns * 2
        return planes, self.resolution, columns

    @property
    def pixel_bytes(self) -> int:
        """Size of a decoded image in bytes."""
        return math.prod(self.shape)

    def check_images(self, where: object) -> None:
        """Raise DataError when the set holds latents."""
        if self.latents is not None:
            raise DataError(f"{where} holds latents, not images: name the images that they are of")

    def to_json(self) -> str:
        """Return the text of `index.json`."""
        without = {"latents"} if self.latents is None else None
        return self.model_dump_json(indent=1, exclude=without) + "\n"

    def check_files(self, folder: str | Path) -> None:
        """Raise DataError unless every shard is a file in `folder` with the recorded size."""
        for shard in self.shards:
            check_shard_file(Path(folder) / shard.name, shard)


def check_shard_file(path: Path, shard: ShardInfo) -> None:
    """Raise DataError unless `path` is a regular file of the recorded size."""
    if not path.is_file():
        again = "make the set again with `fasttrain-data convert`"
        again = again if type(shard) is ShardInfo else shard.remedy
        raise DataError(f"missing shard {path}: {again}")
    size = path.stat().st_size
    if size != shard.bytes:
        raise DataError(f"{path} has {size} bytes, its index says {shard.bytes}: {shard.remedy}")


def load_index(path: str | Path) -> Index:
    """Read and check `path/index.json`.

    Raises DataError in one line: no shards there, unreadable, not valid, or of a newer version.
    """
    folder = Path(path)
    file = folder / INDEX_NAME
    if not file.is_file():
        if re.match(r"[a-z][a-z0-9+.-]+:/", str(path)):
            raise DataError(f"{path} is a URL, which training alone reads: name a folder here")
        raise DataError(not_shards(folder))
    try:
        if file.stat().st_size > MAX_INDEX_BYTES:
            raise DataError(f"{file} is larger than {MAX_INDEX_BYTES} bytes: not an index")
        text = file.read_bytes()
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror}") from error
    return parse_index(text, str(file))


def parse_index(text: bytes, file: str) -> Index:
    """Check the text of an `index.json`; `file` is used in errors. Raises DataError."""
    newer = re.search(rb'"format_version"\s*:\s*([0-9]{1,9})', text)
    if newer and int(newer[1]) > LATENTS_VERSION:
        raise DataError(
            f"{file} has format version {int(newer[1])}, this program reads up to "
            f"{LATENTS_VERSION}: update fasttrain or convert again"
        )
    # By Python's parser and not by pydantic's, which takes a kilobyte for a value or a fault.
    try:
        table = read_json(text, "it", most=MAX_INDEX_VALUES)
    except DataError as error:
        raise DataError(f"{file} is not a valid index ({error}): convert again") from error
    if not _is_lean(table):
        raise DataError(f"{file} is not a valid index: convert again")
    try:
        return Index.model_validate(table)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        message = " ".join(first["msg"].split())
        raise DataError(
            f"{file} is not a valid index ({where + ': ' if where else ''}{message}): convert again"
        ) from error


def _is_lean(table: Any) -> bool:
    """Whether no dictionary of a table, whose every key could be at fault, has too many keys."""
    if not isinstance(table, dict) or len(table) > 100:
        return False
    rows = (row for key in ("shards", "classes") for row in _items(table.get(key)))
    skipped = table.get("skipped")
    return all(len(_items(row)) <= 10 for row in rows) and len(_items(skipped)) <= 1000


def _items(value: Any) -> Any:
    return value if isinstance(value, dict | list) else ()


class ContentHash:
    """SHA-256 over a header line, then for each record in order its label as little-endian int32
    and the SHA-256 of its pixels, uint8 [H, W, C]."""

    def __init__(self, resolution: int, channels: int) -> None:
        self._hash = hashlib.sha256(f"fasttrain-content 2 {resolution} {channels}\n".encode())

    def add(self, label: int, digest: bytes) -> None:
        """Add one image: its label, and `records.digest` of its pixels."""
        self._hash.update(label.to_bytes(4, "little") + digest)

    def hexdigest(self) -> str:
        return self._hash.hexdigest()
