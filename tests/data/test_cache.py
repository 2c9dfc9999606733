"""The folder of fetched files: never a wrong byte from it, never one fetch too many, never too
large."""

from __future__ import annotations

import fcntl
import hashlib
import multiprocessing
import os
import platform
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from fasttrain.data.cache import Cache, Hashes
from fasttrain_data import DataError
from tests.data.servers import wait_for

FILES = [bytes([number]) * 1000 for number in range(5)]
NAMES = [hashlib.sha256(content).hexdigest() for content in FILES]


class Server:
    """Fills files, and counts how often."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def read(self, cache: Cache, number: int, content: bytes | None = None) -> bytes:
        with self.open(cache, number, content) as file:
            return file.read()

    def open(self, cache: Cache, number: int, content: bytes | None = None) -> BinaryIO:
        def fetch(file: BinaryIO) -> None:
            self.asked.append(number)
            file.write(FILES[number] if content is None else content)

        return cache.open(NAMES[number], fetch, name=f"file {number}")


def held(cache: Cache) -> list[int]:
    return [number for number, name in enumerate(NAMES) if (cache.folder / f"{name}.tar").exists()]


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    cache, server = Cache(tmp_path / "made" / "here", limit=3000), Server()
    for number in (0, 1, 2):
        assert server.read(cache, number) == FILES[number]
    assert server.read(cache, 0) == FILES[0]  # 1 is now the oldest
    assert server.asked == [0, 1, 2]
    assert server.read(cache, 3) == FILES[3]
    assert held(cache) == [0, 2, 3]
    with server.open(cache, 2) as file:
        for number in (4, 1, 0):
            server.read(cache, number)
        assert held(cache) == [0, 1, 4]
        assert file.read() == FILES[2]  # removed, and still read
    assert server.asked == [0, 1, 2, 3, 4, 1, 0]
    small = Cache(cache.folder, limit=1)
    assert server.read(small, 3) == FILES[3]
    assert held(cache) == [3]  # the newest stays, however small the limit


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("damage", [lambda data: data[:-1] + b"!", lambda data: data[:-1]])
def test_a_damaged_file_is_fetched_again(
    tmp_path: Path, damage: Callable[[bytes], bytes], known: bool
) -> None:
    """By a process that knew it when it was right, and by a new one."""
    cache, server = Cache(tmp_path, limit=9000), Server()
    server.read(cache, 1)
    path = tmp_path / f"{NAMES[1]}.tar"
    path.write_bytes(damage(path.read_bytes()))
    assert server.read(cache if known else Cache(tmp_path, limit=9000), 1) == FILES[1]
    assert server.asked == [1, 1]
    assert path.read_bytes() == FILES[1]


def test_a_file_is_hashed_once_until_it_is_written_to(tmp_path: Path) -> None:
    path, hashes = tmp_path / "file", Hashes()
    path.write_bytes(FILES[0])
    for _ in range(2):
        with path.open("rb") as file:
            assert hashes.right(file, NAMES[0])
            assert file.tell() == 0
            status = os.fstat(file.fileno())
    path.write_bytes(FILES[1])
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    with path.open("rb") as file:
        assert hashes.right(file, NAMES[0])  # of the same time and size: it was not read
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    with path.open("rb") as file:
        assert not hashes.right(file, NAMES[0])


def test_wrong_content_is_asked_for_twice_and_not_kept(tmp_path: Path) -> None:
    cache, server = Cache(tmp_path, limit=9000), Server()
    with pytest.raises(DataError, match=r"^file 2 does not have the SHA-256 of its index"):
        server.read(cache, 2, b"something else")
    assert server.asked == [2, 2]
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}
    assert server.read(cache, 2) == FILES[2]


def test_a_fetch_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def fetch(file: BinaryIO) -> None:
        file.write(FILES[0][:500])
        raise DataError("cut")

    cache = Cache(tmp_path, limit=9000)
    with pytest.raises(DataError, match=r"^cut$"):
        cache.open(NAMES[0], fetch, name="file")
    assert {path.suffix for path in tmp_path.iterdir()} == {".lock"}
    assert Server().read(cache, 0) == FILES[0]


def in_processes(work: Callable[[], None], count: int) -> list[multiprocessing.Process]:
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=work) for _ in range(count)]
    for process in started:
        process.start()
    return started  # type: ignore[return-value]


def test_processes_and_threads_fetch_a_file_once(tmp_path: Path) -> None:
    log = tmp_path / "log"

    def fetch(file: BinaryIO) -> None:
        with log.open("a") as lines:
            lines.write("asked\n")
        time.sleep(0.3)
        file.write(FILES[3])

    def read() -> None:
        cache = Cache(tmp_path / "cache", limit=9000)

        def one() -> None:
            with (
                cache.open(NAMES[3], fetch, name="file") as file,
                (tmp_path / "read").open("ab") as out,
            ):
                out.write(file.read())

        threads = [threading.Thread(target=one) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    for process in in_processes(read, 3):
        process.join()
        assert process.exitcode == 0
    assert log.read_text() == "asked\n"
    assert (tmp_path / "read").read_bytes() == FILES[3] * 6


def test_a_killed_fetch_leaves_nothing_that_is_taken_for_whole(tmp_path: Path) -> None:
    cache = Cache(tmp_path, limit=9000)

    def parts() -> list[list[int]]:
        """Bytes of what is unfinished, by file."""
        found = [tmp_path.glob(f"{NAMES[number]}.*.part") for number in (0, 1)]
        return [[part.stat().st_size for part in each] for each in found]

    def half(number: int) -> Callable[[], None]:
        def fetch(file: BinaryIO) -> None:
            file.write(FILES[number][:600])
            file.flush()
            time.sleep(60)

        def work() -> None:
            cache.open(NAMES[number], fetch, name="file")

        return work

    killed, living = in_processes(half(0), 1) + in_processes(half(1), 1)
    try:
        wait_for(lambda: parts() == [[600], [600]])
        assert held(cache) == []
        os.kill(killed.pid or 0, signal.SIGKILL)
        killed.join()
        server = Server()
        assert server.read(cache, 2) == FILES[2]
        # What the killed one left is gone, what is being fetched is not touched.
        assert parts() == [[], [600]]
        assert server.read(cache, 0) == FILES[0]
        assert server.asked == [2, 0]
    finally:
        living.kill()
        living.join()
    assert server.read(cache, 1) == FILES[1]
    assert list(tmp_path.glob("*.part")) == []


def test_hosts_without_common_locks_leave_each_others_fetches_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On some network file systems a lock holds on its own host only, or not at all."""
    cache, server = Cache(tmp_path, limit=9000), Server()
    monkeypatch.setattr(fcntl, "flock", lambda *_: None)
    old = tmp_path / f"{NAMES[4]}.gpu02.7.part"
    old.write_bytes(b"of a host that is gone")
    os.utime(old, (0, time.time() - 25 * 3600))

    def fetch(file: BinaryIO) -> None:
        file.write(FILES[0][:500])
        file.flush()
        with monkeypatch.context() as patch:
            patch.setattr(platform, "node", lambda: "gpu02.rack")
            assert server.read(cache, 0) == FILES[0]  # while the other host is half-way
        file.write(FILES[0][500:])

    with cache.open(NAMES[0], fetch, name="file") as file:
        assert file.read() == FILES[0]
    assert held(cache) == [0]
    assert not list(tmp_path.glob("*.part"))


def test_a_process_forked_during_a_fetch_holds_no_lock(tmp_path: Path) -> None:
    """A reader process that has the descriptor of a lock would wait for itself for ever."""
    cache, server = Cache(tmp_path, limit=9000), Server()
    fetching, go_on = threading.Event(), threading.Event()

    def fetch(file: BinaryIO) -> None:
        fetching.set()
        go_on.wait(20)
        file.write(FILES[0])

    thread = threading.Thread(target=lambda: cache.open(NAMES[0], fetch, name="file").close())
    thread.start()
    assert fetching.wait(20)
    (child,) = in_processes(lambda: server.open(cache, 0).close(), 1)
    try:
        go_on.set()
        thread.join()
        child.join(10)
        assert child.exitcode == 0
    finally:
        child.kill()


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"^the cache .*file/cache cannot be used: Not a directory"):
        Server().read(Cache(tmp_path / "file" / "cache", limit=9000), 0)


def test_a_full_disk_is_named(tmp_path: Path) -> None:
    """The kernel refuses large files, which a full disk is to a program."""
    import resource

    def work() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, 500))
        try:
            Server().read(Cache(tmp_path, limit=9000), 0)
        except DataError as error:
            with suppress(OSError):
                (tmp_path / "said").write_text(str(error))

    (child,) = in_processes(work, 1)
    child.join()
    assert (tmp_path / "said").read_text() == f"the cache {tmp_path} cannot be used: File too large"
    assert list(tmp_path.glob("*.part")) == []
