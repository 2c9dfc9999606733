"""The page on loopback, and the training images that it asks for.

with open_server(page, port=0) as server:
    server.address                      # http://127.0.0.1:41234/
    server.serve_forever()

GET /            the page
POST /nearest    bytes of an image -> JSON: the nearest training image; where data are at hand
"""

from __future__ import annotations

import json
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from fasttrain.sampling.playground.nearest import TrainingImages
from fasttrain.sampling.playground.page import Page
from fasttrain.system.errors import UserError
from fasttrain_data import DataError

__all__ = ["Server", "open_server"]

HOST = "127.0.0.1"


class Server(ThreadingHTTPServer):
    """Sends one page to this machine alone."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int, html: bytes, images: TrainingImages | None) -> None:
        self.page, self.images = html, images
        super().__init__((HOST, port), _Handler)

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.server_address[1]}/"

    def handle_error(self, *_: Any) -> None:
        """Say nothing of a browser that closed its connection."""


def open_server(page: Page, port: int = 0, images: TrainingImages | None = None) -> Server:
    """A server that listens; port 0: a free one. Raises UserError when the port is in use."""
    html = page.html(nearest=images is not None).encode()
    try:
        return Server(port, html, images)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise UserError(f"--port {port}: {why}; name another one, or leave it out") from None


class _Handler(BaseHTTPRequestHandler):
    server: Server
    protocol_version = "HTTP/1.1"
    timeout = 60

    def do_GET(self) -> None:
        if self._foreign():
            return
        if self.path.split("?")[0] not in ("/", "/index.html"):
            self._send(HTTPStatus.NOT_FOUND, b"there is one page, at /\n")
            return
        self._send(HTTPStatus.OK, self.server.page, "text/html; charset=utf-8")

    do_HEAD = do_GET

    def do_POST(self) -> None:
        if self._foreign():
            return
        images = self.server.images
        length = self.headers.get("Content-Length", "")
        if self.path != "/nearest" or images is None:
            self.close_connection = True
            self._send(HTTPStatus.NOT_FOUND, b"no training images are at hand\n")
            return
        if length != str(images.bytes):
            self.close_connection = True
            self._send(HTTPStatus.BAD_REQUEST, f"an image has {images.bytes} bytes\n".encode())
            return
        try:
            found = images.nearest(self.rfile.read(images.bytes))
        except (UserError, DataError, OSError) as error:
            self._send(HTTPStatus.INTERNAL_SERVER_ERROR, f"{error}\n".encode())
            return
        self._send(HTTPStatus.OK, json.dumps(found).encode(), "application/json")

    def _foreign(self) -> bool:
        """A page of another name that was made to lead here may not read private images."""
        name = self.headers.get("Host", "").rsplit(":", 1)[0]
        if name in (HOST, "localhost"):
            return False
        self.close_connection = True
        self._send(HTTPStatus.FORBIDDEN, b"this page is for this machine alone\n")
        return True

    def _send(self, status: HTTPStatus, body: bytes, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Requests are no news on a terminal."""
