"""Shard sets behind a URL: downloaded whole into a cache; broken downloads resume."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fasttrain.data.cache import Cache
from fasttrain.data.patience import pause
from fasttrain.data.storage import Storage
from fasttrain.system.errors import Unavailable
from fasttrain_data import DataError, Index, ShardInfo, parse_index
from fasttrain_data.index import INDEX_NAME, MAX_INDEX_BYTES

__all__ = ["Remote", "RemoteStorage"]


PIECE = 1 << 18
"""Bytes of one read from a connection. A broken connection loses what is buffered beyond it, at
most 768 KB with aiohttp's buffers."""

AHEAD = 2
"""Shards that a process downloads ahead at the same time."""


@dataclass(frozen=True, kw_only=True)
class Remote:
    """Options for reading a remote set.

    Attributes:
        cache: folder of this machine for downloaded shards.
        cache_bytes: its size limit, without shards that are being read.
        timeout: seconds to wait for an answer to a request, with http, https and s3; other file
            systems have their own.
        attempts: consecutive failed requests before giving up on a server, also attempts to read a
            folder, with a pause that doubles from half a second to ten.
        options: options of fsspec's file system, for example {"anon": True} for a public S3 bucket.
        any_protocol: also open URLs of protocols beyond PROTOCOLS.
    """

    cache: Path = field(default_factory=lambda: Path.home() / ".cache/fasttrain/shards")
    cache_bytes: int = 50 << 30
    timeout: float = 30.0
    attempts: int = 5
    options: Mapping[str, Any] = field(default_factory=dict)
    any_protocol: bool = False


class RemoteStorage(Storage):
    """A set behind a URL. Each process creates its own file system object."""

    def __init__(self, url: str, remote: Remote) -> None:
        self.url, self.remote, self.attempts = url.rstrip("/"), remote, remote.attempts
        self._cache = Cache(remote.cache, remote.cache_bytes)
        # By process: a forked process must not close its parent's connections.
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
            with ahead, suppress(Exception):  # opening it tries again, and reports the error
                self._cached(shard).close()

        # The process must not wait for it at exit: a server may take minutes to answer.
        thread = threading.Thread(target=fetch, name=f"fetch {shard.name}", daemon=True)
        with suppress(RuntimeError):  # no thread can be started: it is downloaded when opened
            thread.start()

    def _files(self) -> tuple[Any, threading.Semaphore]:
        """fsspec's file system in this process, and the semaphore for downloads ahead."""
        process = os.getpid()
        if process not in self._made:
            self._made[process] = (_connect(self.url, self.remote), threading.Semaphore(AHEAD))
        return self._made[process]

    def _receive(self, name: str, most: int) -> Iterator[bytes]:
        """The first `most` bytes of a file, or the whole file when it is shorter, in pieces. After
        an error it resumes where it stopped. Raises, with the last error, DataError when another
        request cannot succeed, else Unavailable."""
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
                if done and getattr(error, "status", 0) == 416:  # the file ends here
                    return
                attempt = attempt + 1 if done == before else 1
                if isinstance(error, FileNotFoundError):
                    raise DataError(
                        f"{name} is missing: upload everything that `fasttrain-data convert` wrote"
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
        """A file opened at a byte, for sequential reading."""
        files, _ = self._files()
        if not _is_http(self.url):
            with files.open(name, "rb") as file:
                file.seek(start)
                yield file
            return
        headers = {**files.kwargs.get("headers", {}), "Accept-Encoding": "identity"}
        if start:
            headers["Range"] = f"bytes={start}-"
        # Without blocks fsspec sends a single request; with a size it sends none for the size.
        with files.open(name, "rb", block_size=0, size=1, headers=headers) as file:
            past = 0 if file.r.status == 206 else start  # a server without ranges sends everything
            while past:
                piece = file.read(min(PIECE, past))
                if not piece:
                    raise OSError(f"it now has fewer than {start} bytes")
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
    """Whether the same request would give the same error."""
    status = getattr(error, "status", 0)
    refused = status in range(400, 500) and status not in (408, 425, 429)
    return refused or isinstance(error, PermissionError | TypeError | ValueError)
