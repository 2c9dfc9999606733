"""What every kind of source has: a list of labelled images that are decoded one at a time.

A new kind is one more subclass: of `EncodedSource` when it has image files of some kind, of
`ArraySource` when it has pixels. Items are listed when the source is opened, and not read; forked
processes read them too, so no file position may be shared: `os.pread`, or one open a read.
"""

from __future__ import annotations

import hashlib
import io
import os
import resource
from abc import ABC, abstractmethod
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any, NamedTuple

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError
from fasttrain_data.images import BadImage, Wanted, fit, read_header, read_picture
from fasttrain_data.sources.place import Place
from fasttrain_data.tar import MAX_MEMBER_BYTES

__all__ = ["ArraySource", "EncodedSource", "Layout", "OnBad", "Source", "Span", "allow_files"]
__all__ += ["listing_hash", "read_span", "times", "too_large"]

# Called with the name of a file that is left out and why; it raises when there are too many.
OnBad = Callable[[str, str], None]
Advance = Callable[[int, int], None]


class Layout(NamedTuple):
    """What the records of a conversion look like, and which items of the source become records."""

    resolution: int
    channels: int
    items: Sequence[int]


class Source(ABC):
    """A list of labelled images.

    Attributes:
        classes: names in label order.
        labels: the label of each item.
        identity: what goes into the index and tells one source from another; no absolute path.
        images_per_shard: a default that suits it.
        passed_over: files that are no images by their names, by ending.
        options: what a user may choose of it: `split`, `label_column` or `labels` of `Selection`,
            or `fields` of WebDataset's samples.
        unlabelled: images that were left out for want of a label, and why.
        notes: lines that a user should see.
        several: number of files read by this process whose first picture is not their only one.
    """

    classes: Sequence[str]
    labels: Sequence[int] | npt.NDArray[np.int64]
    identity: dict[str, Any]
    images_per_shard = 1000
    passed_over: Mapping[str, int] = MappingProxyType({})
    options: frozenset[str] = frozenset()
    unlabelled: Sequence[tuple[str, str]] = ()
    notes: Sequence[str] = ()
    several: int = 0

    @classmethod
    def opened(cls, place: Place) -> Source | None:
        """The source at a place, None where something of another kind, or nothing, is there. Raises
        DataError for one of this kind that cannot be used."""
        return None

    def __len__(self) -> int:
        return len(self.labels)

    def state(self) -> str:
        """What tells, on this machine alone, that a source changed while its conversion stood
        still: times of files, where names and sizes do not show it."""
        return ""

    @abstractmethod
    def member(self, item: int) -> str:
        """The item's name within the source."""

    def name(self, item: int) -> str:
        """The item's name in a message."""
        return self.member(item)

    @abstractmethod
    def layout(
        self,
        resolution: int | None,
        channels: int | None,
        on_bad: OnBad,
        advance: Advance,
    ) -> Layout:
        """Decide what records look like; `advance(done, total)` drives a progress bar.

        Raises DataError when that cannot be decided.
        """

    @abstractmethod
    def read(self, item: int, wanted: Wanted) -> npt.NDArray[np.uint8]:
        """Decode one item to uint8 [H, W, C]. Raises BadImage."""


class EncodedSource(Source):
    """Image files, wherever they are."""

    title: str
    """What the source is called in a message."""

    @abstractmethod
    @contextmanager
    def open(self, item: int) -> Iterator[IO[bytes]]:
        """An item's bytes as a seekable file. Raises BadImage."""

    def name(self, item: int) -> str:
        return f"{self.title}/{self.member(item)}"

    def read(self, item: int, wanted: Wanted) -> npt.NDArray[np.uint8]:
        with self.open(item) as file:
            picture = read_picture(file, wanted)
        self.several += picture.several
        return picture.pixels

    def layout(
        self,
        resolution: int | None,
        channels: int | None,
        on_bad: OnBad,
        advance: Advance,
    ) -> Layout:
        if resolution is not None and channels is not None:
            return Layout(resolution, channels, range(len(self)))  # no header need be looked at
        items = array("q")  # a list would take five times the memory
        first: tuple[int, int, int] | None = None
        all_grey = True
        for item in range(len(self)):
            advance(item, len(self))
            try:
                with self.open(item) as file:
                    width, height, grey, _ = read_header(file)
            except BadImage as error:
                on_bad(self.name(item), str(error))
                continue
            first = first or (item, width, height)
            if resolution is None and (width, height) != first[1:]:
                raise DataError(
                    f"{self.name(item)} is {width}x{height} but {self.name(first[0])} is "
                    f"{first[1]}x{first[2]}: choose one size with --resolution N"
                )
            all_grey = all_grey and grey
            items.append(item)
        if first is None:
            raise DataError(f"no readable images in {self.title}")
        if resolution is None and first[1] != first[2]:
            raise DataError(
                f"{self.name(first[0])} is {first[1]}x{first[2]}, not square: "
                f"crop all to a square with --resolution {min(first[1:])}"
            )
        return Layout(resolution or first[1], channels or (1 if all_grey else 3), items)


class ArraySource(Source):
    """Pixels of one size, uint8 [H, W, C]."""

    shape: tuple[int, int, int]

    @abstractmethod
    def pixels(self, item: int) -> npt.NDArray[np.uint8]:
        """One item, uint8 [H, W, C]. Raises BadImage."""

    def read(self, item: int, wanted: Wanted) -> npt.NDArray[np.uint8]:
        pixels = self.pixels(item)
        if pixels.shape[-1] == wanted.channels and wanted.resolution in (None, pixels.shape[0]):
            return pixels
        return fit(pixels, wanted)

    def layout(
        self,
        resolution: int | None,
        channels: int | None,
        on_bad: OnBad,
        advance: Advance,
    ) -> Layout:
        height, width, found = self.shape
        if resolution is None and height != width:
            raise DataError(
                f"the images are {width}x{height}, not square: crop them to a square with "
                f"--resolution {min(height, width)}"
            )
        return Layout(resolution or height, channels or found, range(len(self)))


class Span(NamedTuple):
    """Where an item's bytes lie in a file."""

    offset: int
    size: int


def read_span(descriptor: int, span: Span) -> io.BytesIO:
    """The bytes of a span, by a read that moves no file position. Raises BadImage."""
    if span.size > MAX_MEMBER_BYTES:
        raise BadImage(too_large())
    if not 0 <= span.offset < 1 << 62:
        raise BadImage("cut short")
    try:
        data = os.pread(descriptor, span.size, span.offset)
    except OSError as error:
        raise BadImage(f"cannot be read ({error.strerror})") from error
    if len(data) != span.size:
        raise BadImage("cut short")
    return io.BytesIO(data)


def allow_files(count: int) -> None:
    """Raise the limit of open files of this process, as far as the system allows: 1,024 are usual,
    and a large set has more shards."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = count + 256 if hard < 0 else min(count + 256, hard)
    if 0 <= soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def too_large() -> str:
    return f"more than {MAX_MEMBER_BYTES >> 20} MiB"


def times(paths: Iterable[Path]) -> str:
    """Hash of when files, or what links name, were last written."""
    digest = hashlib.sha256()
    for path in paths:
        with suppress(OSError):
            digest.update(path.stat().st_mtime_ns.to_bytes(16, "little", signed=True))
    return digest.hexdigest()


def listing_hash(entries: Iterable[tuple[str, int]]) -> str:
    """Hash of all names and sizes: enough to notice that a source changed, at little cost."""
    digest = hashlib.sha256()
    for name, size in entries:
        digest.update(os.fsencode(name) + b"\0" + str(size).encode() + b"\n")
    return digest.hexdigest()
