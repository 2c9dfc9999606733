"""Shard sets behind a URL: every byte as in the folder, whatever becomes of the connection; one
clear line when there is no way."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from fasttrain.data import ImageStream, Remote, open_storage
from fasttrain.system.errors import Unavailable
from fasttrain_data import DataError, Index, fetching, load_index
from tests.data.servers import (
    Nginx,
    Proxy,
    PythonServer,
    contents,
    cut,
    files,
    free_port,
    needs_nginx,
    one_line,
    stall,
    wait_for,
)


@needs_nginx
@pytest.mark.parametrize(
    ("extra", "workers"),
    [("", 0), ("", 2), ("max_ranges 0;", 0), ("gzip on; gzip_types *; gzip_min_length 1;", 0)],
)
def test_a_set_behind_a_url_is_the_folders_stream(
    folder: Path,
    serve: Callable[..., Nginx],
    remote: Callable[..., Remote],
    extra: str,
    workers: int,
) -> None:
    nginx = serve(extra=extra)
    options: dict[str, Any] = {"batch": 8, "streams": 2, "seed": 5, "window": 7}
    stream = ImageStream(open_storage(nginx.url + "/", remote()), workers=workers, **options)
    local = ImageStream(folder, **options)
    for expected, batch in zip([next(local) for _ in range(17)], stream, strict=False):
        assert torch.equal(batch.images, expected.images)
        assert batch.class_labels is not None
        assert expected.class_labels is not None
        assert torch.equal(batch.class_labels, expected.class_labels)
    assert stream.skipped == 0
    stream.close()
    size = {f"/{shard.name}": shard.bytes for shard in load_index(folder).shards}
    size["/index.json"] = (folder / "index.json").stat().st_size
    asked = sorted(nginx.asked())  # more than two epochs, and each file once, whole
    assert asked == [f"GET {name} 200 {size[name]} -" for name in sorted(size)]


def test_anything_that_fsspec_opens(folder: Path, remote: Callable[..., Remote]) -> None:
    memory = fsspec.filesystem("memory")
    for file in folder.iterdir():
        memory.pipe_file(f"/some/set/{file.name}", file.read_bytes())
    try:
        stream = ImageStream(
            open_storage("memory://some/set", remote(any_protocol=True)), batch=8, streams=4, seed=0
        )
        local = ImageStream(folder, batch=8, streams=4, seed=0)
        for _ in range(20):
            assert torch.equal(next(stream).images, next(local).images)
        memory.rm("/some/set/shard-000002.tar")
        again = open_storage(
            "memory://some/set", remote(cache=remote().cache / "other", any_protocol=True)
        )
        with pytest.raises(DataError, match=r"memory://some/set/shard-000002.tar is missing") as no:
            contents(again, load_index(folder))
        one_line(no)
    finally:
        memory.rm("/some", recursive=True)


@needs_nginx
@pytest.mark.parametrize("extra", ["", "max_ranges 0;"])
def test_cut_connections_go_on_where_they_were(
    folder: Path,
    index: Index,
    serve: Callable[..., Nginx],
    remote: Callable[..., Remote],
    extra: str,
) -> None:
    """Two cuts, two attempts: those that brought something do not count."""
    nginx = serve(extra=extra)  # without ranges it sends all from the beginning every time
    ends = (1_200_000, 2_400_000) if extra else (1_200_000, 1_200_000)
    with Proxy(nginx.port, [cut(end) for end in ends]) as proxy:
        found = open_storage(proxy.url, remote(attempts=2))
        assert contents(found, index) == files(folder, index)
    asked = [line.split() for line in nginx.asked() if "shard-000000" in line]
    starts = [int(line[4][len("bytes=") : -1] or 0) for line in asked]
    assert starts[0] == 0
    assert all(first < second for first, second in pairwise(starts))
    assert len(starts) == 3
    assert {line[2] for line in asked[1:]} == ({"200"} if extra else {"206"})
    assert not any("shard-000001" in line and " bytes=" in line for line in nginx.asked())


@needs_nginx
def test_a_server_killed_in_the_middle_and_started_again(
    folder: Path, index: Index, serve: Callable[..., Nginx], remote: Callable[..., Remote]
) -> None:
    nginx = serve(extra="limit_rate 2m;")
    options = remote(attempts=20)
    found = open_storage(nginx.url, options)
    first = f"{index.shards[0].sha256}.*.part"

    def kill() -> None:
        wait_for(lambda: any(part.stat().st_size for part in options.cache.glob(first)))
        nginx.kill()
        time.sleep(0.5)  # connections are refused meanwhile
        nginx.start()

    killer = threading.Thread(target=kill)
    killer.start()
    with found.open(index.shards[0]) as file:
        read = file.read()
    killer.join()
    assert read == files(folder, index)[0]
    _, _, status, _, asked_range = nginx.asked()[-1].split()
    assert status == "206"
    assert int(asked_range[len("bytes=") : -1]) > 0


@needs_nginx
@pytest.mark.parametrize("after", [0, 400_000])
def test_a_server_that_stalls_is_given_up_and_asked_again(
    folder: Path,
    index: Index,
    serve: Callable[..., Nginx],
    remote: Callable[..., Remote],
    after: int,
) -> None:
    with Proxy(serve().port, [stall(after)]) as proxy:
        found = open_storage(proxy.url, remote(timeout=0.5, attempts=4))
        began = time.monotonic()
        with found.open(index.shards[0]) as file:
            assert file.read() == files(folder, index)[0]
        assert time.monotonic() - began >= 0.5
        assert proxy.connections >= 2
        proxy.breaks += [stall(0)] * 2
        silent = open_storage(proxy.url, remote(timeout=0.2, attempts=2))
        message = r"shard-000001.tar \(2 attempts\): no answer within 0.2 s"
        with pytest.raises(Unavailable, match=message) as gone:
            silent.open(index.shards[1]).__enter__()
        one_line(gone)


def test_a_server_that_is_gone(
    copy: Path, index: Index, remote: Callable[..., Remote], tmp_path: Path
) -> None:
    url = f"http://127.0.0.1:{free_port()}/set"
    with pytest.raises(
        Unavailable, match=rf"cannot read {url}/index.json \(2 attempts\): "
    ) as gone:
        ImageStream(open_storage(url, remote(attempts=2)), batch=4, streams=4, seed=0)
    assert "Cannot connect" in one_line(gone)
    with PythonServer(copy) as server:
        stream = ImageStream(
            open_storage(server.url, remote(attempts=2)), batch=4, streams=1, seed=0, window=4
        )
        next(stream)
        wait_for(lambda: len(list((tmp_path / "cache").glob("*.tar"))) == 2)  # one ahead
    with pytest.raises(Unavailable, match=r"cannot read http.* \(2 attempts\): .*connect") as no:
        list(islice(stream, 16))
    one_line(no)
    place = stream.state_dict()["streams"]["0"]
    assert place == {"epoch": 0, "position": 32, "skipped": 0}
    with PythonServer(copy, server.port):  # back: the stream itself goes on with the next image
        local = ImageStream(copy, batch=4, streams=1, seed=0, window=4)
        expected = [next(local) for _ in range(9)]
        assert torch.equal(next(stream).images, expected[8].images)


@needs_nginx
def test_a_forked_process_leaves_its_parents_connections_alone(
    index: Index, serve: Callable[..., Nginx], remote: Callable[..., Remote]
) -> None:
    found = open_storage(serve().url, remote(attempts=1))
    assert found.index() == index  # its connection is kept open
    child = os.fork()
    if not child:
        right = found.index() == index
        os._exit(0 if right else 1)
    assert os.waitpid(child, 0) == (child, 0)
    assert found.index() == index


def test_a_server_without_ranges_sends_each_file_once(
    folder: Path, index: Index, remote: Callable[..., Remote], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fetching, "PIECE", 10_000)
    with PythonServer(folder) as server:
        assert contents(open_storage(server.url, remote()), index) == files(folder, index)
        assert sorted(server.asked) == [f"/{shard.name}" for shard in index.shards]
