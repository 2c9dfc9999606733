"""Images in archives: zips, EDM's and StyleGAN's for two, and tars, ImageNet's nested train tar for
one. Members are found once, by their headers; each is then read on its own."""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from fasttrain_data.errors import DataError, shown
from fasttrain_data.images import BadImage
from fasttrain_data.samples import is_hidden
from fasttrain_data.sources.base import (
    EncodedSource,
    Span,
    allow_files,
    listing_hash,
    read_span,
    times,
    too_large,
)
from fasttrain_data.sources.classes import Listing, classify
from fasttrain_data.sources.label_files import is_label_file
from fasttrain_data.sources.names import by_ending, cleaned, is_image
from fasttrain_data.sources.place import Place
from fasttrain_data.sources.selection import Selection
from fasttrain_data.tar import MAX_MEMBER_BYTES, Member, printable, scan

__all__ = ["TarSource", "ZipSource"]


class _Bounded:
    """A file whose reads ask for no more than is there: zipfile reads a directory of whatever size
    the archive claims, and a read allocates before it finds out."""

    def __init__(self, file: IO[bytes], size: int) -> None:
        self._file, self._size = file, size

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._size - self._file.tell())
        return self._file.read(left if size < 0 else min(size, left))


class ZipSource(EncodedSource):
    """A zip of images, with the labels of a file in it, else by first folder."""

    options = frozenset({"split", "label_column", "labels"})

    @classmethod
    def opened(cls, place: Place) -> ZipSource | None:
        if place.head[:2] != b"PK":
            return None
        if not zipfile.is_zipfile(place.path):
            raise DataError(f"{place.path} is not a sound zip file: download or copy it again")
        return cls(place.path, place.chosen)

    def __init__(self, path: Path, chosen: Selection | None = None) -> None:
        self.path, self.title = path, str(path)
        self._file = path.open("rb")
        try:
            with zipfile.ZipFile(_Bounded(self._file, path.stat().st_size)) as archive:
                members = {
                    cleaned(info.filename): info
                    for info in archive.infolist()
                    if not info.is_dir() and "\0" not in info.filename
                }
        except Exception as error:  # zipfile raises many types on damaged directories
            raise DataError(f"{path} is not a sound zip file") from error
        self._all = members
        listing = Listing(
            self.title,
            sorted(name for name in members if is_image(name)),
            [name for name in members if not is_image(name) and not is_hidden(name)],
            self._other,
            packed=True,
            passed_over=by_ending(members),
        )
        self.passed_over = listing.passed_over
        files, self.classes, self.labels, self.unlabelled, self.notes = classify(
            listing, chosen or Selection()
        )
        self._members = [members[name] for name in files]
        self.identity = {
            "kind": "zip",
            "name": shown(path.name),
            "files": len(files),
            "listing_sha256": listing_hash(
                (i.filename, i.file_size << 32 | i.CRC) for i in self._members
            ),
        }

    def state(self) -> str:
        return times([self.path])

    def member(self, item: int) -> str:
        return _shown(self._members[item].filename)

    @contextmanager
    def open(self, item: int) -> Iterator[IO[bytes]]:
        yield self._read(self._members[item])

    def _other(self, name: str) -> bytes:
        if name not in self._all:
            raise DataError(f"no {name} in {self.path}")
        try:
            return self._read(self._all[name]).getvalue()
        except BadImage as error:
            raise DataError(f"{self.path}/{name}: {error}") from error

    def _read(self, info: zipfile.ZipInfo) -> BytesIO:
        """One member, stored or deflated, its size and checksum those of the directory.

        `zipfile` would share one file position between processes, and LZMA members may ask for a
        dictionary of 4 GB.
        """
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadImage("compressed by another method than deflate: unpack the zip")
        if info.flag_bits & 1:
            raise BadImage("encrypted")
        if max(info.file_size, info.compress_size) > MAX_MEMBER_BYTES:
            raise BadImage(too_large())
        descriptor = self._file.fileno()
        head = read_span(descriptor, Span(info.header_offset, 30)).getvalue()
        if head[:4] != b"PK\x03\x04":
            raise BadImage("damaged zip member")
        skip = sum(struct.unpack("<HH", head[26:30]))
        span = Span(info.header_offset + 30 + skip, info.compress_size)
        data = read_span(descriptor, span).getvalue()
        if info.compress_type == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-15).decompress(data, info.file_size + 1)
            except zlib.error as error:
                raise BadImage("damaged zip member") from error
        if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
            raise BadImage("damaged zip member")
        return BytesIO(data)


class TarSource(EncodedSource):
    """A tar of images, by first folder; or of tars, one a class (ImageNet's train set), or a folder
    of such class tars. Members that are no regular files are bad files; of two with one name the
    last wins, as when a tar is unpacked."""

    options = frozenset({"split", "label_column", "labels"})

    @classmethod
    def opened(cls, place: Place) -> TarSource | None:
        return cls(place.path, place.chosen) if place.tars() else None

    def __init__(self, path: Path, chosen: Selection | None = None) -> None:
        self.title = str(path)
        archives = [path]
        if path.is_dir():  # a FIFO would be waited for
            tars = (file for file in path.glob("*.tar") if not is_hidden(file.name))
            archives = sorted(file for file in tars if file.is_file())
        allow_files(len(archives))
        self._files = [archive.open("rb") for archive in archives]
        # In arrays, for tuples would take ten times the memory; members in the order of the files.
        self._archive, self._offset, self._size = array("i"), array("q"), array("q")
        self._irregular: dict[int, str] = {}
        self.passed_over = self._passed = Counter[str]()
        self._others: dict[str, tuple[int, Span]] = {}
        self._names: list[str] = []
        for number, archive in enumerate(archives):
            size = archive.stat().st_size
            prefix = archive.stem + "/" if path.is_dir() else ""
            for member in scan(self._files[number], size, str(archive)):
                if member.name.endswith(b".tar") and member.kind is None:
                    inner = os.path.basename(_name(member))[: -len(".tar")] + "/"
                    self._files[number].seek(member.offset)
                    where = f"{archive}/{_name(member)}"
                    for each in scan(self._files[number], member.offset + member.size, where):
                        self._add(number, each, inner)
                else:
                    self._add(number, member, prefix)
        self._paths = archives
        order = self._choose(chosen or Selection())
        self._order = array("q", order)
        self.identity = {
            "kind": "tar",
            "name": shown(path.name),
            "files": len(self._names),
            "listing_sha256": listing_hash(
                (name, self._size[i]) for name, i in zip(self._names, order, strict=True)
            ),
        }

    def _choose(self, chosen: Selection) -> list[int]:
        """Decide which members are read, and their classes; their places, sorted by name."""
        order = sorted(range(len(self._names)), key=self._names.__getitem__)
        names = [self._names[i] for i in order]
        last = [i for i, name in enumerate(names) if names[i + 1 : i + 2] != [name]]
        order, names = [order[i] for i in last], [names[i] for i in last]
        listing = Listing(
            self.title, names, list(self._others), self._other, True, self.passed_over
        )
        images, self.classes, self.labels, self.unlabelled, self.notes = classify(listing, chosen)
        if len(images) < len(names):
            wanted = set(images)
            order = [i for i, name in zip(order, names, strict=True) if name in wanted]
        self._names = list(images)
        return order

    def _other(self, name: str) -> bytes:
        if name not in self._others:
            raise DataError(f"no {name} in {self.title}")
        number, span = self._others[name]
        try:
            return read_span(self._files[number].fileno(), span).getvalue()
        except BadImage as error:
            raise DataError(f"{self.title}/{name}: {error}") from error

    def _add(self, number: int, member: Member, prefix: str) -> None:
        name = _name(member).removeprefix("./")
        if not is_image(name):
            if member.kind is None:
                self._passed += by_ending([name])
                if is_label_file(name):
                    self._others[prefix + name] = number, Span(member.offset, member.size)
            return
        if member.kind is not None:
            self._irregular[len(self._names)] = member.kind
        self._names.append(prefix + name)
        self._archive.append(number)
        self._offset.append(member.offset)
        self._size.append(member.size)

    def state(self) -> str:
        return times(self._paths)

    def member(self, item: int) -> str:
        return self._names[item]

    @contextmanager
    def open(self, item: int) -> Iterator[IO[bytes]]:
        place = self._order[item]
        kind = self._irregular.get(place)
        if kind is not None:
            raise BadImage(f"is {kind}")
        span = Span(self._offset[place], self._size[place])
        yield read_span(self._files[self._archive[place]].fileno(), span)


def _name(member: Member) -> str:
    # First: undecodable bytes become escapes, which have backslashes too.
    return printable(member.name.replace(b"\\", b"/"))


def _shown(name: str) -> str:
    return name.encode("unicode_escape").decode()
