"""Where a shard set lies: a folder, or anything that fsspec opens (`https://`, `s3://`, ...).

    storage = open_storage("https://example.org/imagenet64")
    index = storage.index()
    with storage.open(index.shards[0]) as file: ...

Remote shards are fetched whole, as one stream of bytes each, into the folder that `cache.py` tells
of. After a cut connection only what is missing is asked for.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fasttrain.data.cache import Cache, Hashes
from fasttrain.data.patience import patiently, pause
from fasttrain.errors import Unavailable
from fasttrain_data import DataError, Index, ShardInfo, load_index, open_shard, parse_index
from fasttrain_data.index import INDEX_NAME, MAX_INDEX_BYTES

__all__ = ["FolderStorage", "Remote", "RemoteStorage", "Storage", "is_url", "open_storage"]

PIECE = 1 << 18
"""What is taken from a connection at once. More comes before it is asked for: a cut loses that, at
most 768 KB with aiohttp's buffers."""
PROTOCOLS = ("http", "https", "s3", "s3a", "gs", "gcs", "hf")
"""What is opened without being asked for by name. Others of fsspec's run commands on other hosts
(ssh), send passwords (ftp, smb) or hold a second address that nobody looks at (simplecache)."""
AHEAD = 2
"""Shards that a process fetches at once before they are asked for."""


def is_url(path: str | Path) -> bool:
    """Whether fsspec is asked for it: `PROTOCOL://...`."""
    return "://" in str(path)


class Storage(ABC):
    """A shard set somewhere.

    attempts: consecutive failures of the machine or the network before giving up.
    """

    attempts = 5

    @abstractmethod
    def index(self) -> Index:
        """The set's index. Raises DataError when there is none or it is not valid."""

    @abstractmethod
    def name(self, shard: ShardInfo) -> str:
        """What a shard is called in a message."""

    @abstractmethod
    def open(self, shard: ShardInfo) -> AbstractContextManager[BinaryIO]:
        """A shard's bytes, of the size that the index says. Its SHA-256 is checked when this
        process opens it for the first time, or the first time after it was written to.

        Raises DataError for a shard that is not right, Unavailable for a server that does not
        answer, OSError.
        """

    def will_need(self, shard: ShardInfo) -> None:  # noqa: B027
        """A shard will be opened soon: get it ready in the background if that takes long."""

    def check(self, index: Index) -> None:  # noqa: B027
        """Raise DataError when it can be seen at once that shards are missing."""


class FolderStorage(Storage):
    """A folder of this machine, or mounted on it."""

    def __init__(self, folder: Path, attempts: int = Storage.attempts) -> None:
        self.folder, self.attempts = folder, attempts
        self._hashes = Hashes()

    def __str__(self) -> str:
        return str(self.folder)

    def index(self) -> Index:
        return patiently(lambda: load_index(self.folder), self.attempts, self.folder)

    def name(self, shard: ShardInfo) -> str:
        return str(self.folder / shard.name)

    @contextmanager
    def open(self, shard: ShardInfo) -> Iterator[BinaryIO]:
        try:
            (self.folder / shard.name).stat()
        except (FileNotFoundError, NotADirectoryError) as error:
            # It was there in the beginning (`check`): the folder or its mount has gone away.
            raise OSError(errno.ESTALE, "it is not there any more", self.name(shard)) from error
        with open_shard(self.folder, shard, check_hash=False) as file:
            if not self._hashes.right(file, shard.sha256):
                raise DataError(
                    f"{self.name(shard)} does not have the SHA-256 of its index: "
                    "copy or convert it again"
                )
            yield file

    def check(self, index: Index) -> None:
        patiently(lambda: index.check_files(self.folder), self.attempts, self.folder)


@dataclass(frozen=True, kw_only=True)
class Remote:
    """How a remote set is read.

    Attributes:
        cache: folder of this machine for fetched shards.
        cache_bytes: what it may hold; a shard that is being read is held besides.
        timeout: seconds without an answer after which a request is given up, of http, https and s3;
            other file systems have their own.
        attempts: consecutive ones that bring nothing, also to read a folder, with a pause that
            doubles from half a second to ten.
        options: of fsspec's file system, for example {"anon": True} for a public S3 bucket.
        any_protocol: open URLs of protocols that are none of PROTOCOLS, too.
    """

    cache: Path = field(default_factory=lambda: Path.home() / ".cache/fasttrain/shards")
    cache_bytes: int = 50 << 30
    timeout: float = 30.0
    attempts: int = 5
    options: Mapping[str, Any] = field(default_factory=dict)
    any_protocol: bool = False


def open_storage(path: str | Path, remote: Remote | None = None) -> Storage:
    """The storage that a path or URL names; nothing is read yet. Raises DataError for a protocol
    that is not one of PROTOCOLS, is not known or needs a package."""
    if is_url(path):
        protocol = str(path).partition("://")[0]
        if protocol not in PROTOCOLS and not (remote and remote.any_protocol):
            raise DataError(
                f"{path} is not opened: it is none of {', '.join(PROTOCOLS)}; copy the set, or set "
                f"data.any_protocol=true where it comes from someone you trust"
            )
        return RemoteStorage(str(path), remote or Remote())
    return FolderStorage(Path(path), (remote or Remote()).attempts)


class RemoteStorage(Storage):
    """A set behind a URL. Its file system is made by each process for itself."""

    def __init__(self, url: str, remote: Remote) -> None:
        self.url, self.remote, self.attempts = url.rstrip("/"), remote, remote.attempts
        self._cache = Cache(remote.cache, remote.cache_bytes)
        # By process: what a parent has open stays so, for to close it in a forked process would
        # reach into the parent's connections.
        self._made: dict[int, tuple[Any, threading.Semaphore]] = {}
        self._files()

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}

    def index(self) -> Index:
        name = f"{self.url}/{INDEX_NAME}"
        text = b"".join(self._receive(name, MAX_INDEX_BYTES + 1))
        if len(text) > MAX_INDEX_BYTES:
            raise DataError(f"{name} is larger than {MAX_INDEX_BYTES} bytes: not an index")
        return parse_index(text, name)

    def name(self, shard: ShardInfo) -> str:
        return f"{self.url}/{shard.name}"

    @contextmanager
    def open(self, shard: ShardInfo) -> Iterator[BinaryIO]:
        with self._cached(shard) as file:
            yield file

    def _cached(self, shard: ShardInfo) -> BinaryIO:
        name = self.name(shard)

        def fetch(file: BinaryIO) -> None:
            size = sum(map(file.write, self._receive(name, shard.bytes)))
            if size != shard.bytes:
                raise DataError(
                    f"{name} has {size} bytes, its index says {shard.bytes}: upload it again"
                )

        return self._cache.open(shard.sha256, fetch, name=name)

    def will_need(self, shard: ShardInfo) -> None:
        _, ahead = self._files()

        def fetch() -> None:
            with ahead, suppress(Exception):  # whoever opens it tries again, and says what is wrong
                self._cached(shard).close()

        # Not to be waited for when the process ends: a server may let it wait for minutes.
        thread = threading.Thread(target=fetch, name=f"fetch {shard.name}", daemon=True)
        with suppress(RuntimeError):  # no thread is to be had: it is fetched when it is opened
            thread.start()

    def _files(self) -> tuple[Any, threading.Semaphore]:
        """fsspec's file system, in this process, and how many shards may be fetched ahead."""
        process = os.getpid()
        if process not in self._made:
            self._made[process] = (_connect(self.url, self.remote), threading.Semaphore(AHEAD))
        return self._made[process]

    def _receive(self, name: str, most: int) -> Iterator[bytes]:
        """The first `most` bytes of a file, or all of it when it is shorter, in pieces. After an
        error it goes on where it was. Raises, with the last error, DataError where asking again
        cannot help, else Unavailable."""
        done = attempt = 0
        while done < most:
            before = done
            try:
                with self._reading(name, done) as source:
                    while done < most and (piece := source.read(min(PIECE, most - done))):
                        done += len(piece)
                        yield piece
                return
            except Exception as error:
                if done and getattr(error, "status", 0) == 416:  # there is no more than that
                    return
                attempt = attempt + 1 if done == before else 1
                if isinstance(error, FileNotFoundError):
                    raise DataError(
                        f"{name} is missing: upload all that `fasttrain-data convert` made"
                    ) from error
                if attempt == self.remote.attempts or _is_final(error):
                    tried = "1 attempt" if attempt == 1 else f"{attempt} attempts"
                    why = " ".join(f"{type(error).__name__} {error}".split())
                    if isinstance(error, TimeoutError):
                        why = f"no answer within {self.remote.timeout:g} s"
                    kind = DataError if _is_final(error) else Unavailable
                    raise kind(f"cannot read {name} ({tried}): {why}") from error
            time.sleep(pause(attempt))

    @contextmanager
    def _reading(self, name: str, start: int) -> Iterator[BinaryIO]:
        """A file opened at a byte, to be read in order."""
        files, _ = self._files()
        if not _is_http(self.url):
            with files.open(name, "rb") as file:
                file.seek(start)
                yield file
            return
        headers = {**files.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        # Without blocks fsspec asks once, for all; a size keeps it from asking for that before.
        with files.open(name, "rb", block_size=0, size=1, headers=headers) as file:
            past = 0 if file.r.status == 206 else start  # a server that knows no ranges sends all
            while past:
                piece = file.read(min(PIECE, past))
                if not piece:
                    raise OSError(f"it has fewer than {start} bytes now")
                past -= len(piece)
            yield file


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _connect(url: str, remote: Remote) -> Any:
    """fsspec's file system for a URL."""
    import fsspec

    protocol = url.partition("://")[0]
    options = dict(remote.options)
    try:
        if _is_http(url):
            from aiohttp import ClientTimeout

            limit = ClientTimeout(total=None, sock_connect=remote.timeout, sock_read=remote.timeout)
            options["client_kwargs"] = {"timeout": limit} | options.get("client_kwargs", {})
        if protocol in ("s3", "s3a"):
            limits = {"connect_timeout": remote.timeout, "read_timeout": remote.timeout}
            options["config_kwargs"] = limits | options.get("config_kwargs", {})
        return fsspec.filesystem(protocol, skip_instance_cache=True, **options)
    except (ImportError, ValueError, TypeError) as error:
        why = " ".join(str(error).split())
        extra = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3"}.get(protocol)
        hint = f": pip install 'fasttrain[{extra}]'" if extra else ""
        raise DataError(f"{url} cannot be opened ({why}){hint}") from error


def _is_final(error: Exception) -> bool:
    """Whether the same request would only end in the same error."""
    status = getattr(error, "status", 0)
    refused = status in range(400, 500) and status not in (408, 425, 429)
    return refused or isinstance(error, PermissionError | TypeError | ValueError)
