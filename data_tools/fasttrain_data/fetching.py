"""Files behind a URL as streams of bytes that resume after a broken request, by fsspec.

server = Server("https://example.org/sets/cats")
for piece in server.receive("https://example.org/sets/cats/set-000000.tar", most=1 << 40): ...
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, BinaryIO

from fasttrain_data.errors import DataError, Unreachable

__all__ = ["PIECE", "PROTOCOLS", "Server", "is_url", "pause"]

PIECE = 1 << 18
"""Bytes of one read from a connection. A broken connection loses what is buffered beyond it, at
most 768 KB with aiohttp's buffers."""

PROTOCOLS = ("http", "https", "s3", "s3a", "gs", "gcs", "hf")
"""Protocols that are opened by default. Others of fsspec run commands on other hosts (ssh), send
passwords (ftp, smb) or contain a second address that is not checked (simplecache)."""


def is_url(path: object) -> bool:
    """Whether fsspec opens it: `PROTOCOL://...`."""
    return "://" in str(path)


def pause(attempt: int) -> float:
    """Seconds to wait after attempt number `attempt`, from 1: from half a second to ten."""
    return min(10.0, 0.5 * 2 ** (attempt - 1)) * random.uniform(0.5, 1)


@dataclass
class Server:
    """fsspec's file system for a URL; each process creates its own.

    Attributes:
        timeout: seconds to wait for an answer to a request, with http, https and s3; other file
            systems have their own.
        attempts: consecutive failed requests before giving up on the server.
        options: options of the file system, for example {"anon": True} for a public S3 bucket.
    """

    url: str
    timeout: float = 30.0
    attempts: int = 5
    options: Mapping[str, Any] = field(default_factory=dict)
    # By process: a forked process must not close its parent's connections.
    _made: dict[int, Any] = field(default_factory=dict)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}}

    @property
    def files(self) -> Any:
        """The file system in this process. Raises DataError when there is none for the URL."""
        process = os.getpid()
        if process not in self._made:
            self._made[process] = self._connect()
        return self._made[process]

    def receive(self, name: str, most: int) -> Iterator[bytes]:
        """The first `most` bytes of a file, or the whole file when it is shorter, in pieces. After
        an error it resumes where it stopped. Raises, with the last error, DataError when another
        request cannot succeed, else Unreachable."""
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
                self._give_up(error, name, attempt)
            time.sleep(pause(attempt))

    def size(self, name: str) -> int:
        """Size of a file, in bytes. Raises as `receive` does."""
        found = self._asked(name, lambda: self.files.info(name).get("size"))
        if not isinstance(found, int) or found < 0:
            raise DataError(f"{name}: its server does not report its size: copy the set")
        return found

    def names(self, folder: str) -> list[str]:
        """The files in a folder, by base name, sorted. Raises as `receive` does."""
        found = self._asked(folder, lambda: self.files.ls(folder, detail=False))
        return sorted({str(name).rstrip("/").rpartition("/")[2] for name in found})

    def _asked(self, name: str, question: Any) -> Any:
        attempt = 1
        while True:
            try:
                return question()
            except Exception as error:
                self._give_up(error, name, attempt)
            time.sleep(pause(attempt))
            attempt += 1

    def _give_up(self, error: Exception, name: str, attempt: int) -> None:
        """Raise when another request cannot succeed, or after the last attempt."""
        if isinstance(error, FileNotFoundError):
            raise DataError(
                f"{name} is missing: upload everything that `fasttrain-data convert` wrote"
            ) from error
        if attempt == self.attempts or _is_final(error):
            tried = "1 attempt" if attempt == 1 else f"{attempt} attempts"
            why = " ".join(f"{type(error).__name__} {error}".split())
            if isinstance(error, TimeoutError):
                why = f"no answer within {self.timeout:g} s"
            kind = DataError if _is_final(error) else Unreachable
            raise kind(f"cannot read {name} ({tried}): {why}") from error

    @contextmanager
    def _reading(self, name: str, start: int) -> Iterator[BinaryIO]:
        """A file opened at a byte, for sequential reading."""
        files = self.files
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

    def _connect(self) -> Any:
        import fsspec

        protocol = self.url.partition("://")[0]
        options = dict(self.options)
        try:
            if _is_http(self.url):
                from aiohttp import ClientTimeout

                limit = ClientTimeout(total=None, sock_connect=self.timeout, sock_read=self.timeout)
                options["client_kwargs"] = {"timeout": limit} | options.get("client_kwargs", {})
            if protocol in ("s3", "s3a"):
                limits = {"connect_timeout": self.timeout, "read_timeout": self.timeout}
                options["config_kwargs"] = limits | options.get("config_kwargs", {})
            return fsspec.filesystem(protocol, skip_instance_cache=True, **options)
        except (ImportError, ValueError, TypeError) as error:
            why = " ".join(str(error).split())
            extra = {"http": "http", "https": "http", "s3": "s3", "s3a": "s3"}.get(protocol)
            hint = f": pip install 'fasttrain[{extra}]'" if extra else ""
            raise DataError(f"{self.url} cannot be opened ({why}){hint}") from error


def _is_http(url: str) -> bool:
    return url.startswith(("http://", "https://"))


def _is_final(error: Exception) -> bool:
    """Whether the same request would give the same error."""
    status = getattr(error, "status", 0)
    refused = status in range(400, 500) and status not in (408, 425, 429)
    return refused or isinstance(error, PermissionError | TypeError | ValueError)
