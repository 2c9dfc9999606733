"""Shard sets behind a URL: fetched whole into a cache, from where a broken request left off."""

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
"""Shards that a process fetches at once before they are asked for."""


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


class RemoteStorage(Storage):
    """A set behind a URL. Its file system is made by each process for itself."""

    def __init__(self, url: str, remote: Remote) -> None:
        self.url, self.remote, self.attempts = url.rstrip("/"), remote, remote.attempts
        self._cache = Cache(remote.cache, remote.cache_bytes)
        self._server = Server(self.url, remote.timeout, remote.attempts, remote.options)
        self._ahead: dict[int, threading.Semaphore] = {}  # by process
        self._server.files  # noqa: B018  # a protocol that cannot be had is told at once

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
            with ahead, suppress(Exception):  # whoever opens it tries again, and says what is wrong
                self._cached(shard).close()

        # Not to be waited for when the process ends: a server may let it wait for minutes.
        thread = threading.Thread(target=fetch, name=f"fetch {shard.name}", daemon=True)
        with suppress(RuntimeError):  # no thread is to be had: it is fetched when it is opened
            thread.start()
