"""What is kept of each tar while an index is made, and what becomes of it.

with IndexFolder(out, task.fingerprint()) as folder:
    folder.read(0, task)                 # a tar; then the others
    index = folder.finish(task)
"""

from __future__ import annotations

import hashlib
import json
import os
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from fasttrain_data.errors import DataError
from fasttrain_data.fetching import Server, is_url
from fasttrain_data.index import INDEX_NAME, ClassInfo
from fasttrain_data.passing import OnePass, pieces_of
from fasttrain_data.samples import Fields, Samples, read_samples
from fasttrain_data.sources.labels import Labels
from fasttrain_data.tar_index import RECORDS_NAME, ROW, TarIndex, TarInfo
from fasttrain_data.tars import Tars
from fasttrain_data.writer import Staging, sync_file, write_atomic

__all__ = ["IndexFolder", "Journal", "Servers", "Task"]

_PLACE = np.dtype([("offset", "<i8"), ("size", "<i4"), ("label", "<i4"), ("folder", "<i4")])


@dataclass
class Journal:
    """What is known of a finished tar besides its rows. `state` tells that it was written to."""

    state: list[int]
    sha256: str
    images: int
    texts: list[str]
    folders: list[str]
    companions: bool
    hint: str
    first_unlabelled: str | None
    others: dict[str, int]
    skipped: dict[str, int] = field(default_factory=dict)

    def samples(self) -> Samples:
        """What labels are told by."""
        return Samples(
            texts=self.texts,
            folders=self.folders,
            companions=self.companions,
            hint=self.hint,
            first_unlabelled=self.first_unlabelled,
        )


class Servers:
    """The servers of URLs, by the folder of each."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._options = options
        self._known: dict[str, Server] = {}

    def of(self, folder: str) -> Server:
        if folder not in self._known:
            self._known[folder] = Server(folder, options=self._options)
        return self._known[folder]

    def names(self, folder: str) -> list[str]:
        return self.of(folder).names(folder)


class Task:
    """Which tars are read, and how."""

    def __init__(self, tars: Tars, fields: Fields, servers: Servers) -> None:
        self.tars, self.fields, self.servers = tars, fields, servers

    def fingerprint(self) -> str:
        """Of all that decides a journal but the tar's own bytes."""
        what = {"places": self.tars.places, "fields": asdict(self.fields), "version": 1}
        return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()

    def is_of(self, index: TarIndex) -> bool:
        """Whether an index is of these tars by names, sizes and fields."""
        sizes = {info.name: info.bytes for info in index.shards}
        known = {*sizes, *index.empty} == set(self.tars.names)
        if not known or index.options != asdict(self.fields):
            return False
        pairs = zip(self.tars.names, self.tars.places, strict=True)
        return all(self.state(place)[0] == sizes[name] for name, place in pairs if name in sizes)

    def state(self, place: str) -> list[int]:
        """Size, and time of the last change of a file here. Raises DataError, Unreachable."""
        if is_url(place):
            return [self.servers.of(place.rpartition("/")[0]).size(place)]
        try:
            status = os.stat(place)
        except OSError as error:
            raise DataError(f"cannot read {place}: {error.strerror}") from error
        return [status.st_size, status.st_mtime_ns]

    def read(self, number: int, rows: BinaryIO) -> Journal:
        """Read a tar once, from its first byte to its last. Raises DataError, Unreachable."""
        place = self.tars.places[number]
        state = self.state(place)
        with pieces_of(place, state[0], self.servers.of) as pieces:
            file = OnePass(pieces)
            samples = read_samples(file, state[0], place, self.fields)  # type: ignore[arg-type]
            size = file.drain()
        if size != state[0] or self.state(place) != state:
            raise DataError(f"{place} changed while it was read, or is cut short: try again")
        table = np.empty(len(samples), _PLACE)
        table["offset"], table["size"] = samples.offsets, samples.sizes
        table["label"], table["folder"] = samples.labels, samples.folder
        right = np.ones(len(samples), bool)
        right[list(samples.irregular)] = False
        rows.write(table[right].tobytes())
        keys = [key for key, is_right in zip(samples.keys, right, strict=True) if is_right]
        rows.write("\n".join(keys).encode("utf-8", "backslashreplace"))
        return Journal(
            state=state,
            sha256=file.hexdigest(),
            images=len(keys),
            texts=samples.texts,
            folders=samples.folders,
            companions=samples.companions,
            hint=samples.hint,
            first_unlabelled=samples.first_unlabelled,
            others=dict(samples.others),
            skipped=dict(Counter(samples.irregular.values())),
        )


class IndexFolder(Staging):
    """The hidden folder of an index that is being made."""

    def journal(self, number: int, state: Sequence[int] | None) -> Journal | None:
        """What an earlier run read of this tar, if that is as it was."""
        try:
            found = Journal(**json.loads(self._at(number, "tar.json").read_text()))
        except (OSError, ValueError, TypeError):
            return None
        return found if state is None or found.state == list(state) else None

    def read(self, number: int, task: Task) -> Journal:
        """Read a tar, and keep what was found."""
        part = self._at(number, "part")
        with part.open("wb") as rows:
            journal = task.read(number, rows)
            sync_file(rows)
        part.rename(self._at(number, "rows"))
        write_atomic(self._at(number, "tar.json"), json.dumps(vars(journal)))
        return journal

    def finish(self, task: Task) -> TarIndex:
        """Number the labels, write the index, and let it appear."""
        try:
            index = self._index(task)
        except DataError:  # other options begin again
            self.clear()
            raise
        write_atomic(self.folder / INDEX_NAME, index.to_json())
        for number in range(len(task.tars.places)):
            self._at(number, "tar.json").unlink()
            self._at(number, "rows").unlink()
        self.appear(replace=True)
        return index

    def _index(self, task: Task) -> TarIndex:
        tars = task.tars
        labels = Labels(tars.spec, task.fields)
        for place, journal in zip(tars.places, self._journals(tars), strict=True):
            labels.add(place, journal.samples())
        classes = labels.classes()
        images = np.zeros(len(classes), np.int64)
        infos, empty = list[TarInfo](), list[str]()
        others, skipped = Counter[str](), Counter[str]()
        written, content = hashlib.sha256(), hashlib.sha256(b"fasttrain-tars 1\n")
        first = 0
        with (self.folder / RECORDS_NAME).open("wb") as records:
            for number, journal in enumerate(self._journals(tars)):
                others.update(journal.others)
                skipped.update(journal.skipped)
                content.update(bytes.fromhex(journal.sha256))
                if not journal.images:
                    empty.append(tars.names[number])
                    continue
                part, counts = self._rows(number, journal, labels, tars.places[number])
                images[: len(counts)] += counts
                for digest in (written, content):
                    digest.update(part)
                records.write(part)
                infos.append(
                    TarInfo(
                        name=tars.names[number],
                        images=journal.images,
                        bytes=journal.state[0],
                        sha256=journal.sha256,
                        first=first,
                        length=len(part),
                    )
                )
                first += len(part)
            sync_file(records)
        return TarIndex(
            tars_version=1,
            classes=tuple(
                ClassInfo(name=name, images=int(count))
                for name, count in zip(classes, images, strict=True)
            ),
            images=int(images.sum()),
            shards=tuple(infos),
            empty=tuple(empty),
            records_bytes=first,
            records_sha256=written.hexdigest(),
            content_sha256=content.hexdigest(),
            options=asdict(task.fields),
            skipped=dict(skipped),
            passed_over=dict(others),
        )

    def _journals(self, tars: Tars) -> Iterator[Journal]:
        for number in range(len(tars.places)):
            journal = self.journal(number, None)
            assert journal is not None
            yield journal

    def _rows(
        self, number: int, journal: Journal, labels: Labels, place: str
    ) -> tuple[bytes, npt.NDArray[np.int64]]:
        """A tar's part of the records, and its images by class."""
        content = self._at(number, "rows").read_bytes()
        size = journal.images * _PLACE.itemsize
        table = np.frombuffer(content, _PLACE, count=journal.images)
        samples = journal.samples()
        samples.labels = array("i", table["label"].tobytes())
        samples.folder = array("i", table["folder"].tobytes())
        rows = np.empty(journal.images, ROW)
        rows["offset"], rows["size"] = table["offset"], table["size"]
        rows["label"] = labels.numbers(samples, place)
        return rows.tobytes() + content[size:], np.bincount(rows["label"])

    def _at(self, number: int, ending: str) -> Path:
        return self.folder / f"{number:06d}.{ending}"
