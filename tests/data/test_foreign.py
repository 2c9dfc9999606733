"""Training straight from WebDataset's tars: the pixels, labels and order that a conversion's shards
would promise, whatever names the tars."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from fasttrain.data import ImageStream, Remote
from fasttrain.data.cursor import merged
from fasttrain.data.foreign import View
from fasttrain_data import DataError, convert
from fasttrain_data.images import Crop
from fasttrain_data.indexing import run_indexing
from tests.data.hub import REPO, Hub
from tests.data.servers import PythonServer
from tests.data.tars import IMAGES, seen, stream_of
from tests.foreign import photo, write_shards

pytestmark = pytest.mark.usefixtures("home")


@pytest.mark.parametrize("workers", [0, 2])
def test_each_image_comes_once_an_epoch_with_its_label(tars: Path, workers: int) -> None:
    found = seen(stream_of(tars, batch=2, streams=1, workers=workers), IMAGES // 2)
    assert sorted(found) == [(n, n % 3) for n in range(IMAGES)]


@pytest.mark.parametrize("crop", ["center", "adm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_pixels_are_those_of_a_conversion(tmp_path: Path, crop: Crop, channels: int) -> None:
    folder = write_shards(tmp_path / "tars", images=9, per_shard=5, ending="jpg", channels=3)
    index = run_indexing(str(folder), workers=1).index
    convert(folder, tmp_path / "out", resolution=7, crop=crop, channels=channels)

    def content(stream: ImageStream) -> list[tuple[bytes, int]]:
        batches = [next(stream) for _ in range(9)]
        return sorted(
            (b.images.numpy().tobytes(), int(b.class_labels.argmax()))  # type: ignore[union-attr]
            for b in batches
        )

    options: dict[str, Any] = {"batch": 1, "streams": 1, "seed": 0}
    view = View(resolution=7, channels=channels, crop=crop)
    assert content(stream_of(folder, view, **options)) == content(
        ImageStream(tmp_path / "out", **options)
    )
    views = [index.view(resolution=7, channels=3, crop=each) for each in ("center", "adm")]
    assert views[0].content_sha256 != views[1].content_sha256


@pytest.mark.parametrize("world", [1, 2, 4])
def test_killed_and_resumed_on_another_number_of_processes(tars: Path, world: int) -> None:
    """The order is that of one process that was never stopped."""
    expected = seen(stream_of(tars), 20)

    def all_ranks(world: int, state: dict[str, Any] | None, batches: int) -> tuple[Any, Any]:
        ranks = [stream_of(tars, rank=rank, world_size=world) for rank in range(world)]
        for rank in ranks if state else ():
            rank.load_state_dict(state or {})
        parts = [seen(rank, batches) for rank in ranks]
        share = 4 // world
        order = [
            one
            for b in range(batches)
            for part in parts
            for one in part[b * share : (b + 1) * share]
        ]
        return order, merged([rank.state_dict() for rank in ranks])

    before, state = all_ranks(world, None, 7)
    after, _ = all_ranks({1: 4, 2: 1, 4: 2}[world], state, 13)
    assert before + after == expected


@pytest.mark.parametrize("form", ["brace", "list", "folder elsewhere"])
def test_what_names_the_tars_changes_nothing(tars: Path, tmp_path: Path, form: str) -> None:
    expected = seen(stream_of(tars), 8)
    spec, index = f"{tars}/set-{{000000..000004}}.tar", None
    if form == "list":
        spec = "::".join(str(tars / f"set-{n:06d}.tar") for n in range(5))
    if form == "folder elsewhere":
        spec, index = str(tars), tmp_path / "index"
        shutil.rmtree(tars / "fasttrain-index")
    run_indexing(spec, workers=1, out=index)
    assert seen(stream_of(spec, index=index), 8) == expected


def test_a_list_of_tars_of_the_same_name(tars: Path, tmp_path: Path) -> None:
    write_shards(tmp_path / "more", images=6, per_shard=6, first=100)
    spec = f"{tars}::{tmp_path}/more/set-000000.tar"
    index = run_indexing(spec, workers=2).index
    assert [info.name for info in index.shards][-2:] == [
        "tars/set-000004.tar",
        "more/set-000000.tar",
    ]
    found = seen(stream_of(spec, batch=2, streams=1), (IMAGES + 6) // 2)
    assert sorted(value for value, _ in found) == [*range(IMAGES), *range(100, 106)]


def test_urls(tars: Path, tmp_path: Path) -> None:
    expected = seen(stream_of(tars), 8)
    with PythonServer(tars) as server:
        spec = f"{server.url}/set-{{000000..000004}}.tar"
        remote = Remote(cache=tmp_path / "cache", timeout=5)
        run_indexing(spec, workers=1)
        assert seen(stream_of(spec, remote=remote), 8) == expected
        index = f"{server.url}/fasttrain-index"  # it may lie beside them, too
        assert seen(stream_of(spec, remote=remote, index=index), 8) == expected
        run_indexing(server.url, workers=2)
        assert seen(stream_of(server.url, remote=remote), 8) == expected


def test_the_hub(tars: Path, tmp_path: Path) -> None:
    """`hf://` through fsspec, against a server of this machine that speaks the Hub's protocol."""
    pytest.importorskip("huggingface_hub")
    expected = seen(stream_of(tars), 8)
    (tmp_path / "repo").mkdir()
    (tmp_path / "repo/data").symlink_to(tars)
    with Hub(tmp_path / "repo") as hub:
        folder = f"hf://datasets/{REPO}/data"
        options = {"endpoint": hub.url, "token": False}
        remote = Remote(cache=tmp_path / "cache", options=options)
        for spec in (f"{folder}/set-{{000000..000004}}.tar", folder):
            index = run_indexing(spec, workers=1, storage=options).index
            assert [info.images for info in index.shards] == [6, 6, 6, 6, 2]
            assert seen(stream_of(spec, remote=remote), 8) == expected
        with pytest.raises(DataError, match=r"set-000009\.tar is missing"):
            run_indexing(f"{folder}/set-000009.tar", workers=1, storage=options)
        fetched = [line for line in hub.asked if "/resolve/" in line and "set-000000" in line]
        assert len(fetched) == 3  # for two indexes and a cache


def test_an_image_that_cannot_be_read_is_skipped_by_name_and_changes_nothing_else(
    tmp_path: Path, tars: Path
) -> None:
    folder = tmp_path / "bad"
    write_shards(folder, images=IMAGES, per_shard=6)
    path = folder / "set-000001.tar"
    content = path.read_bytes()
    assert content.count(photo(7)) == 1
    path.write_bytes(content.replace(photo(7), b"x" * len(photo(7))))
    run_indexing(str(folder), workers=1)
    stream = stream_of(folder, max_skipped=2, batch=2, streams=1)
    found = seen(stream, 12)
    assert stream.skipped == 1
    assert stream.faults == [f"{path}: 00007: not an image"]
    expected = seen(stream_of(tars, batch=2, streams=1), 13)
    assert found == [one for one in expected if one[0] != 7][:24]
