"""Readers that hang, and machines at fault: a wait ends in time, what is tried again changes
nothing, and no image is passed over."""

from __future__ import annotations

import ctypes
import errno
import multiprocessing.util
import os
import resource
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import webdataset

from fasttrain.data import ImageStream, patience, reader_process, readers, storage
from fasttrain.data.storage import FolderStorage
from fasttrain.errors import Stopped, Unavailable, UserError
from fasttrain_data import open_shard
from tests.data.servers import wait_for
from tests.data.test_workers import OPTIONS, pids, told

CLONE_NEWNS, MS_REC_PRIVATE = 0x20000, 0x44000


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses and looks are short."""
    monkeypatch.setattr(readers, "POLL", 0.02)
    monkeypatch.setattr(patience.random, "uniform", lambda *_: 0.01)


def told_into(found: list[Any], stream: ImageStream, count: int) -> None:
    """As `told`; what came before an error is kept."""
    for _ in range(count):
        found += told(stream, 1)


def in_child(work: Callable[[], None], seconds: float = 60) -> int:
    """Exit status of a forked process that does `work`: 0 when it raised nothing."""
    child = os.fork()
    if not child:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the process did not end")


def test_a_frozen_reader_is_given_up_in_time_and_nothing_is_lost(shards: Path) -> None:
    expected = told(ImageStream(shards, **OPTIONS), 8)
    with closing(ImageStream(shards, workers=2, reader_timeout=0.5, **OPTIONS)) as stream:
        found = told(stream, 2)
        frozen = pids(stream)[1]
        os.kill(frozen, signal.SIGSTOP)
        began = time.monotonic()
        message = rf"^the processes that read {shards} have given no images for 0.5 s .*{frozen} is"
        with pytest.raises(Unavailable, match=message + " stopped") as caught:
            told_into(found, stream, 4)
        assert "\n" not in str(caught.value)
        assert time.monotonic() - began < 10
        assert 2 <= len(found) < 6  # what was read ahead was used
        assert stream.state_dict() == found[-1][3]
        found += told(stream, 8 - len(found))  # by new readers
    assert found == expected


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stage_that_never_returns_is_given_up_or_left_when_asked(
    shards: Path, workers: int, tmp_path: Path
) -> None:
    hang = tmp_path / "hang"

    def stage(source: Iterator[Any]) -> Iterator[Any]:
        for sample in source:
            while hang.exists():
                time.sleep(0.1)
            yield sample

    options = {**OPTIONS, "workers": workers, "stages": [stage], "reader_timeout": 0.3}
    with closing(ImageStream(shards, **options)) as stream:
        found = told(stream, 2)
        stream.close()
        hang.touch()
        with pytest.raises(Unavailable, match=rf"{shards} ha[sv]e? given no images for 0.3 s"):
            next(stream)
        assert stream.state_dict() == found[-1][3]
        stream.reader_timeout = 600
        stream.asked_to_stop = lambda: True
        with pytest.raises(Stopped):
            next(stream)
        assert stream.state_dict() == found[-1][3]
        hang.unlink()
        stream.asked_to_stop = lambda: False
        found += told(stream, 4)
    assert found == told(ImageStream(shards, **OPTIONS), 6)


def test_a_full_shared_memory_is_not_needed(shards: Path) -> None:
    """/dev/shm of one page, and that is taken."""
    expected = told(ImageStream(shards, **OPTIONS), 6)
    libc = ctypes.CDLL(None, use_errno=True)
    refused = 77

    def work() -> None:
        if libc.unshare(CLONE_NEWNS):
            os._exit(refused)
        assert not libc.mount(b"none", b"/", None, MS_REC_PRIVATE, None)
        assert not libc.mount(b"tmpfs", b"/dev/shm", b"tmpfs", 0, b"size=4k")
        Path("/dev/shm/full").write_bytes(b"x" * 4096)
        with pytest.raises(OSError, match="No space left"):
            Path("/dev/shm/more").write_bytes(b"x")
        with closing(ImageStream(shards, workers=2, **OPTIONS)) as stream:
            assert told(stream, 6) == expected

    status = in_child(work)
    if status == refused:
        pytest.skip("no mount namespaces here: not root")
    assert status == 0


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
    from fasttrain.data import stages

    faulty = Faulty(number, times, after)
    monkeypatch.setattr(storage, "open_shard", faulty)
    monkeypatch.setattr(stages, "read_records", faulty.read(stages.read_records))


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
        with pytest.raises(Unavailable, match=r"not there any more \(3 attempts\)") as caught:
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
        bytearray(1 << 26)
        return sample

    options = {**OPTIONS, "stages": [webdataset.map(stage)], "max_skipped": 99}
    patient = FolderStorage(shards, attempts=2)
    with closing(ImageStream(patient, workers=1, **options)) as stream:
        with pytest.raises(Unavailable, match=message.format(shards)):
            told(stream, 9)
        assert stream.skipped == 0


def test_processes_that_cannot_be_started(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is left open by those that could be."""
    expected = told(ImageStream(shards, **OPTIONS), 2)
    started, before = [], len(os.listdir("/proc/self/fd"))

    def start(*args: Any) -> Any:
        started.append(args)
        if len(started) % 2 == 0 and len(started) < limit:
            raise BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable")
        return reader_process.start_reader(*args)

    monkeypatch.setattr(readers, "start_reader", start)
    for limit, attempts in ((4, 2), (99, 2)):
        started.clear()
        patient = FolderStorage(shards, attempts=attempts)
        with closing(ImageStream(patient, workers=2, **OPTIONS)) as stream:
            if limit == 4:
                assert told(stream, 2) == expected
                continue
            message = f"no process can be started to read {shards}: Resource .*data.workers=0"
            with pytest.raises(Unavailable, match=message):
                next(stream)
    wait_for(lambda: len(os.listdir("/proc/self/fd")) <= before)


def test_a_process_that_not_even_sigkill_ends_holds_nothing_up(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that waits for a disk which is gone; here it is frozen, and `kill` does nothing."""
    left: list[int] = []

    def work() -> None:
        stream = ImageStream(shards, workers=1, reader_timeout=0.2, **OPTIONS)
        next(stream)
        [pid] = pids(stream)
        os.write(writing, b"%d" % pid)
        os.kill(pid, signal.SIGSTOP)
        multiprocessing.process.BaseProcess.kill = lambda _: None  # type: ignore[method-assign]
        monkeypatch.setattr(reader_process, "JOIN", 0.2)
        with pytest.raises(Unavailable):
            told(stream, 9)
        multiprocessing.util._exit_function()  # type: ignore[attr-defined]

    reading, writing = os.pipe()
    try:
        assert in_child(work, 20) == 0
    finally:
        os.close(writing)
        left += [int(os.read(reading, 99))]
        os.close(reading)
        os.kill(left[0], signal.SIGKILL)
