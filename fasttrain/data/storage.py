"""Where a shard set lies: a folder, or anything that fsspec opens (`https://`, `s3://`, ...).

    storage = open_storage("https://example.org/imagenet64")
    index = storage.index()
    with storage.open(index.shards[0]) as file: ...

Remote shards are fetched whole into a folder of this machine, found there by their SHA-256 and
kept up to a size, the least recently used going first. They are fetched in pieces: after a cut
connection only the piece is asked for again. Processes of one machine share the folder and wait for
each other instead of fetching twice.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from fasttrain_data import DataError, Index, ShardInfo, load_index, open_shard, parse_index
from fasttrain_data.index import INDEX_NAME, MAX_INDEX_BYTES

__all__ = ["FolderStorage", "Remote", "RemoteStorage", "Storage", "is_url", "open_storage"]

T = TypeVar("T")
PIECE = 8 << 20


def is_url(path: str | Path) -> bool:
    """Whether fsspec is asked for it: `PROTOCOL://...`."""
    return "://" in str(path)


class Storage(ABC):
    """A shard set somewhere."""

    def __init__(self) -> None:
        self._hashed: set[str] = set()

    @abstractmethod
    def index(self) -> Index:
        """The set's index. Raises DataError when there is none or it is not valid."""

    @abstractmethod
    def name(self, shard: ShardInfo) -> str:
        """What a shard is called in a message."""

    @abstractmethod
    def open(self, shard: ShardInfo) -> AbstractContextManager[BinaryIO]:
        """A shard's bytes, of the size that the index says; its SHA-256 is checked when this
        process opens it for the first time. Raises DataError, OSError."""

    def will_need(self, shard: ShardInfo) -> None:  # noqa: B027
        """A shard will be opened soon: get it ready in the background if that takes long."""

    def check(self, index: Index) -> None:  # noqa: B027
        """Raise DataError when it can be seen at once that shards are missing."""

    @contextmanager
    def _open(self, folder: Path, shard: ShardInfo) -> Iterator[BinaryIO]:
        with open_shard(folder, shard, check_hash=shard.sha256 not in self._hashed) as file:
            self._hashed.add(shard.sha256)
            yield file


class FolderStorage(Storage):
    """A folder of this machine, or mounted on it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder

    def __str__(self) -> str:
        return str(self.folder)

    def index(self) -> Index:
        return load_index(self.folder)

    def name(self, shard: ShardInfo) -> str:
        return str(self.folder / shard.name)

    def open(self, shard: ShardInfo) -> AbstractContextManager[BinaryIO]:
        return self._open(self.folder, shard)

    def check(self, index: Index) -> None:
        index.check_files(self.folder)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """How a remote set is read.

    Attributes:
        cache: folder of this machine for fetched shards.
        cache_bytes: what it may hold; a shard that is being read is held besides.
        timeout: seconds without an answer after which a request is given up.
        attempts: of each request, with a pause that doubles from half a second to ten.
        options: of fsspec's file system, for example {"anon": True} for a public S3 bucket.
    """

    cache: Path = field(default_factory=lambda: Path.home() / ".cache/fasttrain/shards")
    cache_bytes: int = 50 << 30
    timeout: float = 30.0
    attempts: int = 5
    options: Mapping[str, Any] = field(default_factory=dict)


def open_storage(path: str | Path, remote: Remote | None = None) -> Storage:
    """The storage that a path or URL names; nothing is read yet. Raises DataError for a protocol
    that is not known or needs a package."""
    if is_url(path):
        return RemoteStorage(str(path), remote or Remote())
    return FolderStorage(Path(path))


class RemoteStorage(Storage):
    """A set behind a URL. Its file system is made by each process for itself."""

    def __init__(self, url: str, remote: Remote) -> None:
        super().__init__()
        self.url, self.remote = url.rstrip("/"), remote
        self._made: tuple[int, Any, ThreadPoolExecutor] | None = None
        self._files()

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": None}

    def index(self) -> Index:
        name = f"{self.url}/{INDEX_NAME}"
        text = self._attempt(name, lambda: bytes(self._files().cat_file(name)))
        if len(text) > MAX_INDEX_BYTES:
            raise DataError(f"{name} is larger than {MAX_INDEX_BYTES} bytes: not an index")
        return parse_index(text, name)

    def name(self, shard: ShardInfo) -> str:
        return f"{self.url}/{shard.name}"

    @contextmanager
    def open(self, shard: ShardInfo) -> Iterator[BinaryIO]:
        """The file of the cache, opened while nobody may remove it."""
        with self._cached(shard) as file:
            yield file

    def _cached(self, shard: ShardInfo) -> BinaryIO:
        while True:
            path = self._fetch(shard)
            with suppress(FileNotFoundError):  # removed already: the cache is too small for all
                return path.open("rb")

    def will_need(self, shard: ShardInfo) -> None:
        def fetch() -> None:
            with suppress(Exception):  # whoever opens it will try again, and say what is wrong
                self._fetch(shard)

        self._files()
        assert self._made is not None
        self._made[2].submit(fetch)

    def _files(self) -> Any:
        """fsspec's file system, in this process."""
        if self._made is None or self._made[0] != os.getpid():
            self._made = (os.getpid(), self._connect(), ThreadPoolExecutor(2, "fetch"))
        return self._made[1]

    def _connect(self) -> Any:
        import fsspec

        protocol = self.url.partition("://")[0]
        options = dict(self.remote.options)
        try:
            if protocol in ("http", "https"):
                from aiohttp import ClientTimeout

                limit = ClientTimeout(
                    total=None, sock_connect=self.remote.timeout, sock_read=self.remote.timeout
                )
                options.setdefault("client_kwargs", {"timeout": limit})
            return fsspec.filesystem(protocol, skip_instance_cache=True, **options)
        except (ImportError, ValueError, TypeError) as error:
            why = " ".join(str(error).split())
            extra = {"http": "http", "https": "http", "s3": "s3"}.get(protocol)
            hint = f": pip install 'fasttrain[{extra}]'" if extra else ""
            raise DataError(f"{self.url} cannot be opened ({why}){hint}") from error

    def _attempt(self, what: str, work: Callable[[], T]) -> T:
        """The value of `work()`, tried again after any error: fsspec's for a refused connection is
        FileNotFoundError. Raises DataError with the last one."""
        for attempt in range(1, self.remote.attempts + 1):
            try:
                return work()
            except Exception as error:
                if attempt == self.remote.attempts:
                    why = " ".join(f"{type(error).__name__} {error}".split())
                    raise DataError(f"cannot read {what} ({attempt} attempts): {why}") from error
                pause = min(10.0, 0.5 * 2 ** (attempt - 1))
                time.sleep(pause * random.uniform(0.5, 1))
        raise AssertionError("not reached")

    def _fetch(self, shard: ShardInfo) -> Path:
        """The shard in the cache, whole and with the right SHA-256. Raises DataError, OSError."""
        cache = self.remote.cache
        cache.mkdir(parents=True, exist_ok=True)
        path = cache / f"{shard.sha256}.tar"
        with _locked(cache / f"{shard.sha256[:2]}.lock"):
            try:
                found = path.stat().st_size == shard.bytes
            except FileNotFoundError:
                found = False
            if found and self._sound(path, shard):
                os.utime(path)
                return path
            part = path.with_suffix(".part")
            for attempt in (1, 2):
                with part.open("w+b") as file:
                    digest = self._download(shard, file)
                if digest == shard.sha256:
                    break
                if attempt == 2:
                    part.unlink()
                    raise DataError(
                        f"{self.name(shard)} does not have the SHA-256 of its index: upload it "
                        "again"
                    )
            self._hashed.add(shard.sha256)
            part.rename(path)
        self._make_room(path)
        return path

    def _sound(self, path: Path, shard: ShardInfo) -> bool:
        """Whether a file of the cache is what it is named; looked at once by each process."""
        if shard.sha256 not in self._hashed:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != shard.sha256:
                    return False
            self._hashed.add(shard.sha256)
        return True

    def _download(self, shard: ShardInfo, file: BinaryIO) -> str:
        """Fetch a shard piece by piece; its SHA-256."""
        name, files, digest = self.name(shard), self._files(), hashlib.sha256()
        for start in range(0, shard.bytes, PIECE):
            end = min(start + PIECE, shard.bytes)

            def piece(start: int = start, end: int = end) -> bytes:
                data = bytes(files.cat_file(name, start=start, end=end))
                if len(data) == shard.bytes:  # a server that knows no ranges sends it all
                    data = data[start:end]
                if len(data) != end - start:
                    raise OSError(f"{len(data)} bytes came instead of {end - start}")
                return data

            data = self._attempt(name, piece)
            digest.update(data)
            file.write(data)
        file.flush()
        return digest.hexdigest()

    def _make_room(self, newest: Path) -> None:
        """Remove what was used longest ago until the cache is as small as it should be."""
        with _locked(self.remote.cache / "cache.lock"):
            held = []
            for path in self.remote.cache.glob("*.tar"):
                with suppress(FileNotFoundError):
                    status = path.stat()
                    held.append((status.st_mtime_ns, status.st_size, path))
            size = sum(each for _, each, _ in held)
            for _, each, path in sorted(held):
                if size <= self.remote.cache_bytes:
                    return
                if path != newest:
                    path.unlink(missing_ok=True)
                    size -= each


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock file, of threads and processes of this machine."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
