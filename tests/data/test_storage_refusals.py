"""What a remote set is refused for: once, in one line, and nothing of it is kept."""

from __future__ import annotations

import http.server
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fasttrain.data import ImageStream, Remote, open_storage, storage_of
from fasttrain.data import remote as remote_module
from fasttrain.data.remote import RemoteStorage
from fasttrain.settings import DataSettings
from fasttrain.system.errors import Unavailable, UserError
from fasttrain_data import DataError, Index
from tests.data.servers import (
    Nginx,
    contents,
    files,
    needs_nginx,
    one_line,
)


@needs_nginx
def test_what_asking_again_cannot_mend_is_not_asked_again(
    copy: Path, index: Index, serve: Callable[..., Nginx], remote: Callable[..., Remote]
) -> None:
    (copy / "shard-000000.tar").unlink()
    refused = "location = /shard-000001.tar { return 403; }"
    nginx = serve(copy, refused + " location = /shard-000002.tar { return 503; }")
    found = open_storage(nginx.url, remote(attempts=2))
    for shard, kind, message, attempts in (
        (index.shards[0], DataError, r"shard-000000.tar is missing: upload everything that", 1),
        (index.shards[1], DataError, r"cannot read .*shard-000001.tar \(1 attempt\): .*403", 1),
        (index.shards[2], Unavailable, r"cannot read .*shard-000002.tar \(2 attempts\): .*503", 2),
    ):
        with pytest.raises(kind, match=message) as caught:
            found.open(shard).__enter__()
        assert nginx.url in one_line(caught)
        assert sum(shard.name in line for line in nginx.asked()) == attempts
    (copy / "index.json").unlink()
    with pytest.raises(UserError, match=r"index.json is missing: upload") as no_index:
        ImageStream(open_storage(nginx.url, remote()), batch=4, streams=4, seed=0)
    one_line(no_index)
    with pytest.raises(DataError, match=r"\(1 attempt\): TypeError .*'anon'"):
        open_storage(nginx.url, remote(options={"anon": True})).index()


@needs_nginx
@pytest.mark.parametrize(
    ("spoil", "message", "asked"),
    [
        (lambda data: data[:-1] + b"x", "does not have the SHA-256 of its index: upload it", 2),
        (lambda data: data[:-9], r"has \d+ bytes, its index says \d+: upload it again", 1),
    ],
)
def test_wrong_content_is_refused(
    copy: Path,
    index: Index,
    serve: Callable[..., Nginx],
    remote: Callable[..., Remote],
    spoil: Callable[[bytes], bytes],
    message: str,
    asked: int,
) -> None:
    nginx = serve(copy)
    path = copy / "shard-000001.tar"
    good = path.read_bytes()
    path.write_bytes(spoil(good))
    found = open_storage(nginx.url, remote())
    with pytest.raises(DataError, match=message) as caught:
        contents(found, index)
    assert f"{nginx.url}/shard-000001.tar" in one_line(caught)
    assert sum("shard-000001" in line for line in nginx.asked()) == asked
    assert {path.suffix for path in remote().cache.iterdir()} == {".tar", ".lock"}
    assert len(list(remote().cache.glob("*.tar"))) == 1
    path.write_bytes(good)
    assert contents(found, index) == files(copy, index)


class Endless(http.server.BaseHTTPRequestHandler):
    sent = 0

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        while True:
            self.wfile.write(b" " * 65536)
            Endless.sent += 65536

    def log_message(self, format: str, *args: Any) -> None:
        pass


def test_an_index_without_end_is_refused_before_it_is_all_here(
    remote: Callable[..., Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_module, "MAX_INDEX_BYTES", 3_000_000)
    monkeypatch.setattr(http.server.ThreadingHTTPServer, "handle_error", lambda *_: None)
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        found = open_storage(f"http://127.0.0.1:{server.server_port}", remote())
        with pytest.raises(DataError, match=r"index.json is larger than 3000000 bytes: not"):
            found.index()
        assert Endless.sent < 20_000_000  # what was on its way besides
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("url", "package", "message"),
    [
        ("nonsense://set", "", r"nonsense://set cannot be opened \(Protocol not known: nonsense"),
        ("s3://bucket/set", "s3fs", r"s3://bucket/set .*\): pip install 'fasttrain\[s3\]'"),
        ("https://host/set", "aiohttp", r"https://host/set .*\): pip install 'fasttrain\[http\]'"),
    ],
)
def test_what_cannot_be_opened_is_said_in_one_line(
    url: str, package: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package:
        monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=message) as caught:
        storage_of(DataSettings(path=url, any_protocol=True))
    one_line(caught)


def test_the_settings_reach_the_storage(tmp_path: Path) -> None:
    found = storage_of(
        DataSettings(
            path="https://host/set",
            cache=tmp_path,
            cache_gigabytes=1.5,
            timeout=3,
            attempts=2,
            storage={"headers": {"Authorization": "Bearer x"}},
        )
    )
    assert isinstance(found, RemoteStorage)
    assert found.remote == Remote(
        cache=tmp_path,
        cache_bytes=1_500_000_000,
        timeout=3,
        attempts=2,
        options={"headers": {"Authorization": "Bearer x"}},
    )
    assert found.url == "https://host/set"


def test_a_cache_at_fault_costs_no_image(shards: Path, tmp_path: Path) -> None:
    """A full or vanished disk of this machine would else empty a whole set into `skipped`."""
    cache = tmp_path / "cache"
    files = open_storage(shards.as_uri(), Remote(cache=cache, any_protocol=True))
    stream = ImageStream(files, batch=4, streams=2, seed=0, window=4, max_skipped=99)
    cache.write_text("a file where the folder was to be")
    with pytest.raises(UserError, match=r"^the cache .* cannot be used"):
        next(stream)
    assert stream.skipped == 0
    cache.unlink()
    assert len(next(stream)) == 4
