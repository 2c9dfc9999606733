"""Machines at fault: what is tried again changes nothing, and no image is passed over."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest
import webdataset

from fasttrain.data import ImageStream, storage
from fasttrain.data.storage import FolderStorage
from fasttrain.system.errors import Unavailable, UserError
from fasttrain_data import fetching, open_shard
from tests.data.batches import IMAGES
from tests.data.test_readers import told_into
from tests.data.workers import OPTIONS, told


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses are short."""
    monkeypatch.setattr(fetching.random, "uniform", lambda *_: 0.01)


class Faulty:
    """Stands for `open_shard`, and fails the given times with an error of the machine: when the
    shard is opened, or in its middle."""

    def __init__(self, number: int, times: int, after: int | None) -> None:
        self.number, self.left, self.after = number, times, after

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self.left and self.after is None:
            self.left -= 1
            raise OSError(self.number, os.strerror(self.number))
        return open_shard(*args, **kwargs)

    def read(self, original: Callable[..., Any]) -> Callable[..., Any]:
        def read_records(*args: Any, **kwargs: Any) -> Iterator[Any]:
            for place, record in enumerate(original(*args, **kwargs)):
                if self.left and place == self.after:
                    self.left -= 1
                    raise OSError(self.number, os.strerror(self.number))
                yield record

        return read_records


NUMBERS = [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.ESTALE, errno.ETIMEDOUT]


def broken(monkeypatch: pytest.MonkeyPatch, number: int, times: int, after: int | None) -> None:

    faulty = Faulty(number, times, after)
    monkeypatch.setattr(storage, "open_shard", faulty)
    monkeypatch.setattr(storage, "read_records", faulty.read(storage.read_records))


@pytest.mark.parametrize("after", [None, 3])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_fault_of_the_machine_that_passes_changes_nothing(
    shards: Path, number: int, after: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = told(ImageStream(shards, **OPTIONS), 6)
    broken(monkeypatch, number, 2, after)
    found = told(ImageStream(FolderStorage(shards, attempts=3), max_skipped=9, **OPTIONS), 6)
    assert found == expected


@pytest.mark.parametrize("after", [None, 3])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_fault_of_the_machine_that_stays_ends_reading_and_skips_nothing(
    shards: Path, number: int, after: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stream = ImageStream(FolderStorage(shards, attempts=3), max_skipped=99, **OPTIONS)
    before = stream.state_dict()
    broken(monkeypatch, number, 99, after)
    message = rf"^cannot read {shards}/shard-.*\.tar: {os.strerror(number)} \(3 attempts\)$"
    with pytest.raises(Unavailable, match=message):
        next(stream)
    assert (stream.state_dict(), stream.skipped, stream.faults) == (before, 0, [])


def test_a_file_without_rights_is_no_fault_of_the_machine(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch, errno.EACCES, 99, None)
    with pytest.raises(UserError, match="Permission denied"):
        next(ImageStream(shards, max_skipped=2, **OPTIONS))


@pytest.mark.parametrize("workers", [0, 2])
def test_a_folder_that_goes_away_and_comes_back(
    make_set: Callable[..., Path], workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_set(counts=[16, 16], per_shard=4)
    away = path.with_name("away")
    options = {**OPTIONS, "batch": 4, "max_skipped": 99, "window": 1}
    expected = told(ImageStream(path, **options), 12)
    patient = FolderStorage(path, attempts=3)
    with closing(ImageStream(patient, workers=workers, **options)) as stream:
        found = told(stream, 1)
        path.rename(away)
        with pytest.raises(Unavailable, match=r"does not exist any more \(3 attempts\)") as caught:
            told_into(found, stream, 11)
        assert f"cannot read {path}/shard-0000" in str(caught.value)
        assert stream.state_dict() == found[-1][3]

        def back(_: int) -> float:
            with suppress(FileNotFoundError):  # another reader's pause was over before
                away.rename(path)
            return 0

        monkeypatch.setattr("fasttrain.data.parts.pause", back)
        found += told(stream, 12 - len(found))
    assert found == expected


@pytest.mark.parametrize(
    ("which", "value", "message"),
    [
        (
            resource.RLIMIT_NOFILE,
            3,
            r"cannot read {}/shard-.*: Too many open files \(2 attempts\)$",
        ),
        (resource.RLIMIT_AS, 1 << 20, r"not enough memory to read {} \(2 attempts\)$"),
    ],
)
def test_descriptors_and_memory_that_a_reader_has_not(
    shards: Path, which: int, value: int, message: str
) -> None:
    """For real: the limits of its process."""

    def stage(sample: Any) -> Any:
        resource.setrlimit(which, (value, resource.getrlimit(which)[1]))
        if which == resource.RLIMIT_AS:
            bytearray(1 << 34)  # more than the heap can have left
        return sample

    options = {**OPTIONS, "stages": [webdataset.map(stage)], "max_skipped": 99}
    patient = FolderStorage(shards, attempts=2)
    with closing(ImageStream(patient, workers=1, **options)) as stream:
        with pytest.raises(Unavailable, match=message.format(shards)):
            told(stream, 9)
        assert stream.skipped == 0


@pytest.mark.parametrize("failures", [2, 3])
def test_the_index_is_tried_again_too(
    shards: Path, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = [OSError(errno.EIO, os.strerror(errno.EIO))] * failures
    read = Path.read_bytes

    def read_bytes(path: Path) -> bytes:
        if left:
            raise left.pop()
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    message = rf"^cannot read {shards}/index.json: Input/output error \(3 attempts\)$"
    with pytest.raises(Unavailable, match=message) if failures == 3 else nullcontext():
        assert ImageStream(FolderStorage(shards, attempts=3), **OPTIONS).manifest.images == IMAGES


def test_an_image_that_finds_no_memory_is_not_damaged(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing_left(*_: Any) -> None:
        raise MemoryError

    monkeypatch.setattr("fasttrain_data.records.Image.frombytes", nothing_left)
    stream = ImageStream(FolderStorage(shards, attempts=1), max_skipped=99, **OPTIONS)
    with pytest.raises(Unavailable, match="not enough memory to read"):
        next(stream)
    assert (stream.skipped, stream.faults) == (0, [])
