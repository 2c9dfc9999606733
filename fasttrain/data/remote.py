"""Shard sets behind a URL: downloaded whole into a cache; broken downloads resume."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from fasttrain.data.cache import Cache
from fasttrain.data.storage import Storage
from fasttrain.system.errors import Unavailable
from fasttrain_data import DataError, Index, ShardInfo, parse_index
from fasttrain_data.errors import Unreachable
from fasttrain_data.fetching import Server
from fasttrain_data.index import INDEX_NAME, MAX_INDEX_BYTES

__all__ = ["Remote", "RemoteStorage"]

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
        self._server = Server(self.url, remote.timeout, remote.attempts, remote.options)
        self._ahead: dict[int, threading.Semaphore] = {}  # by process
        self._server.files  # noqa: B018  # report an unavailable protocol at once

    def __str__(self) -> str:
        return self.url

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": {}}

    def index(self) -> Index:
        return parse_index(self.text(INDEX_NAME), f"{self.url}/{INDEX_NAME}")

    def text(self, file: str) -> bytes:
        """A small file of the set: its index. Raises DataError, Unavailable."""
        name = f"{self.url}/{file}"
        text = b"".join(self._receive(name, MAX_INDEX_BYTES + 1))
        if len(text) > MAX_INDEX_BYTES:
            raise DataError(f"{name} is larger than {MAX_INDEX_BYTES} bytes: not an index")
        return text

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

    def _receive(self, name: str, most: int) -> Iterator[bytes]:
        try:
            yield from self._server.receive(name, most)
        except Unreachable as error:
            raise Unavailable(str(error)) from error.__cause__

    def will_need(self, shard: ShardInfo) -> None:
        ahead = self._ahead.setdefault(os.getpid(), threading.Semaphore(AHEAD))

        def fetch() -> None:
            with ahead, suppress(Exception):  # opening it tries again, and reports the error
                self._cached(shard).close()

        # The process must not wait for it at exit: a server may take minutes to answer.
        thread = threading.Thread(target=fetch, name=f"fetch {shard.name}", daemon=True)
        with suppress(RuntimeError):  # no thread can be started: it is downloaded when opened
            thread.start()
