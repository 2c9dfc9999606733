"""As much of the Hub's protocol as fsspec's `hf://` asks for, of one data set in a folder.

with Hub(folder) as hub: fsspec.filesystem("hf", endpoint=hub.url).ls("hf://datasets/someone/cats")
"""

from __future__ import annotations

import http.server
import json
import re
import threading
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

__all__ = ["REPO", "Hub"]

REPO = "someone/cats"
SHA = "0123456789abcdef" * 2 + "01234567"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    root: Path
    asked: list[str]

    def log_message(self, format: str, *args: Any) -> None:
        self.asked.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _json(self, value: Any, status: int = 200, **headers: str) -> None:
        self._answer(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def _entry(self, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(self.root))
        if path.is_dir():
            return {"type": "directory", "oid": SHA, "size": 0, "path": name}
        return {"type": "file", "oid": SHA, "size": path.stat().st_size, "path": name}

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
        is_json = body.startswith("{")
        paths = json.loads(body)["paths"] if is_json else parse_qs(body).get("paths", [])
        found = [self.root / path for path in ([paths] if isinstance(paths, str) else paths)]
        self._json([self._entry(path) for path in found if path.exists()])

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        if path in (f"/api/datasets/{REPO}", f"/api/datasets/{REPO}/revision/main"):
            self._json({"id": REPO, "sha": SHA, "siblings": []})
        elif tree := re.fullmatch(rf"/api/datasets/{REPO}/tree/\w+/?(.*)", path):
            folder = self.root / tree[1]
            rows = sorted(folder.iterdir()) if folder.is_dir() else []
            self._json([self._entry(each) for each in rows], 200 if folder.is_dir() else 404)
        elif file := re.fullmatch(rf"/datasets/{REPO}/resolve/\w+/(.+)", path):
            self._file(self.root / file[1])
        else:
            self._json({"error": "not found"}, 404, X_Error_Code="RepoNotFound")

    do_HEAD = do_GET

    def _file(self, path: Path) -> None:
        if not path.is_file():
            self._json({"error": "not found"}, 404, X_Error_Code="EntryNotFound")
            return
        content, wanted = path.read_bytes(), self.headers.get("Range")
        match = re.fullmatch(r"bytes=(\d+)-(\d*)", wanted or "")
        if match is None:
            self._answer(200, content, X_Repo_Commit=SHA)
            return
        first, last = int(match[1]), int(match[2] or len(content) - 1)
        part = content[first : last + 1]
        end = f"bytes {first}-{first + len(part) - 1}/{len(content)}"
        self._answer(206, part, X_Repo_Commit=SHA, Content_Range=end)


class Hub:
    """A server in a thread; `asked` holds its requests."""

    def __init__(self, root: Path) -> None:
        self.asked: list[str] = []
        handler = type("Handler", (_Handler,), {"root": root, "asked": self.asked})
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()
