"""Readers that hang or cannot be started: a wait ends in time, and nothing is lost or repeated."""

from __future__ import annotations

import errno
import multiprocessing.util
import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from fasttrain.data import ImageStream, reader_process, readers
from fasttrain.data.storage import FolderStorage
from fasttrain.system.errors import Stopped, Unavailable
from fasttrain_data import fetching
from tests.data.servers import wait_for
from tests.data.workers import OPTIONS, pids, told
from tests.hostile.shared_memory import fill_shared_memory


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pauses and looks are short."""
    monkeypatch.setattr(readers, "POLL", 0.02)
    monkeypatch.setattr(fetching.random, "uniform", lambda *_: 0.01)


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


@pytest.mark.parametrize("workers", [0, 1])
def test_no_thread_to_read_with_is_a_fault_of_the_machine(
    shards: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: readers.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(readers.Thread, "start", refuse)
    with closing(ImageStream(shards, workers=workers, **OPTIONS)) as stream:
        with pytest.raises(Unavailable, match=r"^no thread can be started to read images: can't"):
            next(stream)
        monkeypatch.undo()
        assert told(stream, 2) == told(ImageStream(shards, **OPTIONS), 2)


def test_a_frozen_reader_is_given_up_in_time_and_nothing_is_lost(shards: Path) -> None:
    expected = told(ImageStream(shards, **OPTIONS), 8)
    with closing(ImageStream(shards, workers=2, reader_timeout=0.5, **OPTIONS)) as stream:
        found = told(stream, 2)
        frozen = pids(stream)[1]
        os.kill(frozen, signal.SIGSTOP)
        began = time.monotonic()
        message = rf"^the processes that read {shards} have sent no images for 0.5 s .*{frozen} is"
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
        with pytest.raises(Unavailable, match=rf"{shards} ha[sv]e? sent no images for 0.3 s"):
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
    refused = 77

    def work() -> None:
        if not fill_shared_memory():
            os._exit(refused)
        with pytest.raises(OSError, match="No space left"):
            Path("/dev/shm/more").write_bytes(b"x")
        with closing(ImageStream(shards, workers=2, **OPTIONS)) as stream:
            assert told(stream, 6) == expected

    status = in_child(work)
    if status == refused:
        pytest.skip("no mount namespaces here: not root")
    assert status == 0


def test_processes_that_cannot_be_started(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is left open by those that could be."""
    with closing(ImageStream(shards, workers=2, **OPTIONS)) as stream:  # opens what stays open
        expected = told(stream, 2)
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
