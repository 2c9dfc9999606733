"""Images in archives: EDM's and StyleGAN's dataset zips, ImageNet's nested train tars, npm's emoji
packages. Members are found once, by their headers; each is then read on its own."""

from __future__ import annotations

import os
import re
import struct
import zipfile
import zlib
from array import array
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from io import BytesIO
from pathlib import Path
from typing import IO, Any

from fasttrain_data.errors import DataError, shown
from fasttrain_data.images import BadImage
from fasttrain_data.sources.arrays import unpacked
from fasttrain_data.sources.base import (
    EncodedSource,
    Span,
    allow_files,
    by_ending,
    by_folder,
    inside,
    is_image,
    listing_hash,
    read_span,
    times,
    too_large,
)
from fasttrain_data.sources.folder import DATASET_JSON, dataset_labels, open_inside
from fasttrain_data.tables import load_json, read_json
from fasttrain_data.tar import MAX_MEMBER_BYTES, Member, printable, scan

__all__ = ["EmojiSource", "TarSource", "ZipSource"]

MAX_PACKAGE_BYTES = 1 << 30
_EMOJI = rb"package/(?:img/[^/]+/64/([^/]+\.png)|(emoji\.json))"


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
    """A zip of images, with the labels of its `dataset.json`, else by first folder."""

    def __init__(self, path: Path) -> None:
        self.path, self.title = path, str(path)
        self._file = path.open("rb")
        try:
            with zipfile.ZipFile(_Bounded(self._file, path.stat().st_size)) as archive:
                members = {
                    info.filename: info
                    for info in archive.infolist()
                    if not info.is_dir() and "\0" not in info.filename
                }
        except Exception as error:  # zipfile raises many types on damaged directories
            raise DataError(f"{path} is not a sound zip file") from error
        found = sorted(name for name in members if is_image(name))
        if DATASET_JSON in members:
            self._members = [members[DATASET_JSON]]
            self.labels = [0]
            try:
                text = self._read(0).getvalue()
            except BadImage as error:
                raise DataError(f"{path}/{DATASET_JSON}: {error}") from error
            table = read_json(text, f"{path}/{DATASET_JSON}")
            files, self.classes, self.labels = dataset_labels(table, found, self.title)
        else:
            files = found
            self.classes, self.labels = by_folder(inside(files), path)
        self.passed_over = by_ending(members)
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
        yield self._read(item)

    def _read(self, item: int) -> BytesIO:
        """One member, stored or deflated, its size and checksum those of the directory.

        `zipfile` would share one file position between processes, and LZMA members may ask for a
        dictionary of 4 GB.
        """
        info = self._members[item]
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BadImage("compressed by another method than deflate")
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
    of such class tars. Members that are no regular files are bad files."""

    def __init__(self, path: Path) -> None:
        self.title = str(path)
        archives = [path]
        if path.is_dir():  # a FIFO would be waited for
            archives = sorted(file for file in path.glob("*.tar") if file.is_file())
        allow_files(len(archives))
        self._files = [archive.open("rb") for archive in archives]
        # In arrays, for tuples would take ten times the memory; members in the order of the files.
        self._archive, self._offset, self._size = array("i"), array("q"), array("q")
        self._irregular: dict[int, str] = {}
        self.passed_over = self._others = Counter[str]()
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
        order = sorted(range(len(self._names)), key=self._names.__getitem__)
        self._names = [self._names[i] for i in order]
        self._order = array("q", order)
        self.classes, self.labels = by_folder(inside(self._names), path)
        self._paths = archives
        self.identity = {
            "kind": "tar",
            "name": shown(path.name),
            "files": len(self._names),
            "listing_sha256": listing_hash(
                (name, self._size[i]) for name, i in zip(self._names, order, strict=True)
            ),
        }

    def _add(self, number: int, member: Member, prefix: str) -> None:
        name = _name(member).removeprefix("./")
        if not is_image(name):
            self._others += by_ending([name] if member.kind is None else [])
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
    return printable(member.name)


def _shown(name: str) -> str:
    return name.encode("unicode_escape").decode()


class EmojiSource(EncodedSource):
    """npm's `emoji-datasource-*`: single PNG files of 64x64, classes by the category that
    `emoji.json` gives. The package's .tgz, or the folder that it was unpacked to."""

    _open: Callable[[str], AbstractContextManager[IO[bytes]]]

    def __init__(self, path: Path) -> None:
        self.title = str(path)
        table = self._unpacked(path) if path.is_dir() else self._packed(path)
        rows = sorted(_emoji(table, path))
        present = [(name, label) for name, label in rows if name in self._present]
        self._images = [name for name, _ in present]
        if not present:
            raise DataError(f"none of the images that {path}/emoji.json names is there")
        self.classes = sorted({category for _, category in present})
        number = {name: label for label, name in enumerate(self.classes)}
        self.labels = [number[category] for _, category in present]
        self.identity = {
            "kind": "emoji",
            "name": re.sub(r"[^A-Za-z0-9._-]", "", path.name),
            "files": len(present),
            "listing_sha256": listing_hash((n, self._present[n]) for n in self._images),
        }

    def _unpacked(self, path: Path) -> Any:
        """Finds the images; the table."""
        root = (path if (path / "emoji.json").is_file() else path / "package").resolve()
        (folder, *_) = [*sorted(root.glob("img/*/64")), root / "img"]
        self._present = {p.name: p.lstat().st_size for p in folder.glob("*.png")}
        self._open = lambda name: open_inside(root, folder / name)
        return load_json(root / "emoji.json")

    def _packed(self, path: Path) -> Any:
        """Finds the images; the table."""
        file, size = unpacked(path, MAX_PACKAGE_BYTES)
        spans: dict[str, Span] = {}
        for member in scan(file, size, str(path)):
            match = re.fullmatch(_EMOJI, member.name)
            if match and member.kind is None and member.size <= MAX_MEMBER_BYTES:
                name = (match[1] or match[2]).decode("ascii", "replace")
                spans[name] = Span(member.offset, member.size)
        self._present = {name: span.size for name, span in spans.items()}
        if "emoji.json" not in spans:
            raise DataError(f"{path} is not an emoji package: no package/emoji.json in it")
        self._open = lambda name: nullcontext(read_span(file.fileno(), spans[name]))
        with self._open("emoji.json") as table:
            return read_json(table.read(), f"{path}/emoji.json")

    def member(self, item: int) -> str:
        return self._images[item]

    @contextmanager
    def open(self, item: int) -> Iterator[IO[bytes]]:
        with self._open(self._images[item]) as file:
            yield file


def _emoji(table: Any, path: Path) -> set[tuple[str, str]]:
    """(image, category) of each emoji and each of its skin variations."""
    found: set[tuple[str, str]] = set()
    try:
        for row in table:
            variations = row.get("skin_variations") or {}
            for each in (row, *variations.values()):
                if not isinstance(each["image"], str) or not isinstance(row["category"], str):
                    raise TypeError
                found.add((each["image"], row["category"]))
    except (TypeError, KeyError, AttributeError) as error:
        raise DataError(f"{path}/emoji.json is not the table of an emoji package") from error
    return found
