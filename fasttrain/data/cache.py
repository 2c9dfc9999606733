"""Files of a remote set, cached in a folder of this machine by their SHA-256.

    cache = Cache(Path("~/.cache/fasttrain/shards").expanduser(), limit=50 << 30)
    with cache.open(shard.sha256, fetch, name="https://.../shard-000000.tar") as file: ...

Processes of one machine share the folder: while one fetches a file the others wait for it. The
least recently used files are removed when the folder exceeds its limit; open ones stay readable. A
file has its name only when it is complete.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from fasttrain.system.errors import is_machine_fault
from fasttrain_data import DataError

__all__ = ["Cache", "CacheError", "Hashes"]

PART = ".part"
DAY = 24 * 60 * 60.0
"""In seconds."""


class CacheError(DataError):
    """The cache's folder cannot be used: not a fault of the set, so no image is skipped."""


class Hashes:
    """Files that this process knows to have the right SHA-256, until they are changed."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, ...]] = {}

    def right(self, file: BinaryIO, sha256: str) -> bool:
        """Whether an open file has the SHA-256. It is read if it is new, or was changed since; its
        position is then the beginning."""
        status = os.fstat(file.fileno())
        state = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
        if self._known.get(sha256) == state:
            return True
        digest = hashlib.sha256()
        while piece := file.read(1 << 20):
            digest.update(piece)
        if digest.hexdigest() != sha256:
            return False
        file.seek(0)
        self._known[sha256] = state
        return True


class Cache:
    """A folder of files that can be downloaded again.

    limit: its size in bytes, without the newest file and open ones.
    """

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self._hashes = Hashes()

    def open(self, sha256: str, fetch: Callable[[BinaryIO], None], *, name: str) -> BinaryIO:
        """The file with this SHA-256. If it is missing, `fetch` fills an empty file.

        Raises DataError when two downloads have another SHA-256 (`name` is in the message),
        CacheError when the folder cannot be used, OSError when the machine is at fault, and the
        errors of `fetch`.
        """
        path = self.folder / f"{sha256}.tar"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _locked(self._lock(path)):
                file = self._find(path)
                if file is not None:
                    return file
                file = self._make(path, fetch, name)
            self._make_room(path)
        except OSError as error:
            if is_machine_fault(error):
                raise OSError(
                    error.errno, error.strerror, error.filename or str(self.folder)
                ) from error
            raise CacheError(
                f"the cache {self.folder} cannot be used: {error.strerror or error}"
            ) from error
        return file

    def _lock(self, path: Path) -> Path:
        return self.folder / f"{path.name[:2]}.lock"

    def _find(self, path: Path) -> BinaryIO | None:
        try:
            file = path.open("rb")
        except FileNotFoundError:
            return None
        if not self._hashes.right(file, path.stem):
            file.close()
            return None
        _used_now(file)
        return file

    def _make(self, path: Path, fetch: Callable[[BinaryIO], None], name: str) -> BinaryIO:
        # Where locks do not reach beyond a host, several may fetch the same file.
        part = path.with_suffix(f".{platform.node()}.{os.getpid()}{PART}")
        try:
            for _ in range(2):
                file = part.open("w+b")
                try:
                    fetch(file)
                    file.seek(0)
                    if self._hashes.right(file, path.stem):
                        _used_now(file)
                        part.rename(path)
                        return file
                except BaseException:
                    file.close()
                    raise
                file.close()
        finally:
            part.unlink(missing_ok=True)
        raise DataError(f"{name} does not have the SHA-256 of its index: upload it again")

    def _make_room(self, newest: Path) -> None:
        """Remove unfinished files of killed processes, and the least recently used files until the
        folder is within its limit."""
        with _locked(self.folder / "cache.lock"):
            for part in self.folder.glob(f"*{PART}"):
                gone = suppress(BlockingIOError, FileNotFoundError)
                with gone, _locked(self._lock(part), wait=False):
                    if _abandoned(part):
                        part.unlink(missing_ok=True)
            held = []
            for path in self.folder.glob("*.tar"):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    held.append((status.st_atime_ns, status.st_size, path))
            size = sum(each for _, each, _ in held)
            for _, each, path in sorted(held):
                if size <= self.limit:
                    return
                if path != newest:
                    path.unlink(missing_ok=True)
                    size -= each


def _abandoned(part: Path) -> bool:
    """Whether nobody writes an unfinished file any more: a process of this host that has ended, or,
    of another host, one that has written nothing for a day."""
    host, _, pid = part.name.removesuffix(PART).partition(".")[2].rpartition(".")
    if host == platform.node():
        return not Path(f"/proc/{pid}").exists()
    return time.time() - part.stat().st_mtime > DAY


def _used_now(file: BinaryIO) -> None:
    modified = os.fstat(file.fileno()).st_mtime_ns
    with suppress(PermissionError):  # another user's file
        os.utime(file.fileno(), ns=(time.time_ns(), modified))


@contextmanager
def _locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold a lock file, against threads and processes of this machine. Raises BlockingIOError when
    it is held and `wait` is false.

    A process forked in the meantime has the descriptor, too, so closing it here would not unlock.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError as error:
            # Some network file systems have no locks: there a file may be downloaded twice.
            if error.errno not in (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP):
                raise
        try:
            yield
        finally:
            with suppress(OSError):
                fcntl.flock(descriptor, fcntl.LOCK_UN)
    finally:
        os.close(descriptor)
