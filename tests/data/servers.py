"""Servers on loopback for a shard set: nginx, and a proxy in front of it that breaks connections.

with Nginx(folder, work) as nginx, Proxy(nginx.port, [cut(1000), stall(10)]) as proxy:
    open_storage(proxy.url)
"""

from __future__ import annotations

import http.server
import shutil
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from fasttrain.data import Storage
from fasttrain_data import Index

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
needs_nginx = pytest.mark.skipif(NGINX is None, reason="nginx is not installed")

CONFIG = """
daemon off; master_process off; pid nginx.pid; error_log error.log;
events {{ worker_connections 64; }}
http {{
  log_format asked '$request_method $uri $status $body_bytes_sent $http_range';
  access_log access.log asked;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  server {{ listen 127.0.0.1:{port}; root {root}; {extra} }}
}}
"""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(condition: Callable[[], Any], seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "what was waited for did not come"
        time.sleep(0.005)


class Nginx:
    """nginx on a port of its own; `extra` are more directives, such as `limit_rate 1m;`."""

    def __init__(self, root: Path, work: Path, extra: str = "") -> None:
        self.work, self.port, self.marks = work, free_port(), 0
        work.mkdir()
        (work / "nginx.conf").write_text(CONFIG.format(port=self.port, root=root, extra=extra))
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        assert NGINX is not None
        command = [NGINX, "-p", str(self.work), "-e", "error.log", "-c", "nginx.conf"]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        wait_for(self.listens)

    def listens(self) -> bool:
        assert self.process.poll() is None, (self.work / "error.log").read_text()
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def asked(self) -> list[str]:
        """A line for each request so far: method, path, status, bytes sent, range."""
        self.marks += 1
        with suppress(urllib.error.HTTPError):  # nginx writes its lines in order, this one last
            urllib.request.urlopen(f"{self.url}/mark-{self.marks}")
        log = self.work / "access.log"
        wait_for(lambda: f"/mark-{self.marks} " in log.read_text())
        return [line for line in log.read_text().splitlines() if "/mark-" not in line]

    def __enter__(self) -> Nginx:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


class Plain(http.server.SimpleHTTPRequestHandler):
    """Python's own server: it knows no ranges."""

    def log_message(self, format: str, *args: Any) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]


class PythonServer:
    """http.server in a thread; `asked` holds the paths that were requested."""

    def __init__(self, root: Path, port: int = 0) -> None:
        handler = partial(Plain, directory=str(root))
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", port), handler)
        self.server.asked = self.asked = []  # type: ignore[attr-defined]
        self.port = self.server.server_port
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> PythonServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()


@dataclass(frozen=True)
class Break:
    """Fate of a connection after this many bytes of answers."""

    after: int
    stalls: bool = False


cut = Break
stall = partial(Break, stalls=True)


class Proxy:
    """Forwards connections to a port of this machine; the first ones break as `breaks` says."""

    def __init__(self, port: int, breaks: Sequence[Break] = ()) -> None:
        self.target, self.breaks = port, list(breaks)
        self.connections = 0
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        self.open: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):  # the listener was closed
            while True:
                client, _ = self.listener.accept()
                self.connections += 1
                planned = self.breaks.pop(0) if self.breaks else None
                server = socket.create_connection(("127.0.0.1", self.target))
                self.open += [client, server]
                for source, sink, end in ((client, server, None), (server, client, planned)):
                    threading.Thread(
                        target=self._forward, args=(source, sink, end), daemon=True
                    ).start()

    def _forward(self, source: socket.socket, sink: socket.socket, end: Break | None) -> None:
        left = end.after if end else -1
        with suppress(OSError):
            while left and (data := source.recv(min(65536, left) if end else 65536)):
                sink.sendall(data)
                left -= len(data) if end else 0
            if end and end.stalls:
                return
            for each in (sink, source) if end else ():
                each.shutdown(socket.SHUT_RDWR)
            if not end:
                sink.shutdown(socket.SHUT_WR)

    def __enter__(self) -> Proxy:
        return self

    def __exit__(self, *_: object) -> None:
        for each in (self.listener, *self.open):  # also those that a forked process has, too
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


def contents(found: Storage, index: Index) -> list[bytes]:
    read = []
    for shard in index.shards:
        with found.open(shard) as file:
            read.append(file.read())
    return read


def files(folder: Path, index: Index) -> list[bytes]:
    return [(folder / shard.name).read_bytes() for shard in index.shards]


def one_line(error: pytest.ExceptionInfo[Exception]) -> str:
    assert "\n" not in str(error.value)
    return str(error.value)
