"""Training straight from WebDataset's tars: the pixels, labels and order that a conversion's shards
would promise; a set that changed under its index is named."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import pytest

from fasttrain.data import ImageStream, Remote, open_storage
from fasttrain.data.cursor import merged
from fasttrain.data.foreign import View
from fasttrain.system.errors import UserError
from fasttrain_data import DataError, VerificationError, convert
from fasttrain_data.images import Crop
from fasttrain_data.index_folder import Task
from fasttrain_data.indexing import run_indexing
from fasttrain_data.samples import Fields
from fasttrain_data.tar_verification import verify_tars
from tests.data.hub import REPO, Hub
from tests.data.servers import PythonServer
from tests.foreign import photo, write_shards

IMAGES = 26
GREY = View(resolution=8, channels=1)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's cache is empty."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def tars(tmp_path: Path) -> Path:
    """26 images of three classes in five tars, indexed."""
    folder = write_shards(tmp_path / "tars", images=IMAGES, per_shard=6)
    run_indexing(str(folder), workers=1)
    return folder


def stream_of(spec: object, view: View = GREY, **options: Any) -> ImageStream:
    storage = open_storage(str(spec), options.pop("remote", None), view, options.pop("index", None))
    return ImageStream(storage, **{"batch": 4, "seed": 3, "window": 5, **options})


def seen(stream: ImageStream, batches: int) -> list[tuple[int, int]]:
    """Which image and label each is; images have one value, whatever their size was."""
    found = []
    for batch in islice(stream, batches):
        labels = batch.class_labels
        assert labels is not None
        values = batch.images.flatten(1)
        assert (values == values[:, :1]).all()
        found += zip(values[:, 0].tolist(), labels.argmax(1).tolist(), strict=True)
    stream.close()
    return found


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


def test_an_index_goes_on_after_a_kill_and_reads_each_tar_once(
    tars: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = (tars / "fasttrain-index/index.json").read_bytes()
    shutil.rmtree(tars / "fasttrain-index")
    read = Task.read
    numbers: list[int] = []

    def counted(self: Task, number: int, rows: BinaryIO) -> Any:
        numbers.append(number)
        if len(numbers) == limit:
            os.kill(os.getpid(), signal.SIGKILL)
        return read(self, number, rows)

    monkeypatch.setattr(Task, "read", counted)
    limit = 4
    child = os.fork()
    if not child:
        run_indexing(str(tars), workers=1)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not (tars / "fasttrain-index").exists()
    limit = -1
    (tars / "set-000001.tar").touch()  # written to meanwhile
    run_indexing(str(tars), workers=1)
    assert numbers == [1, 3, 4]
    assert (tars / "fasttrain-index/index.json").read_bytes() == whole
    assert run_indexing(str(tars)).already_there
    assert numbers == [1, 3, 4]
    assert sorted(path.name for path in tars.glob(".*")) == []


def test_an_index_is_of_the_bytes_that_went_by(tars: Path) -> None:
    index = run_indexing(str(tars)).index
    for info in index.shards:
        content = (tars / info.name).read_bytes()
        assert (info.bytes, info.sha256) == (len(content), hashlib.sha256(content).hexdigest())
    assert [info.images for info in index.shards] == [6, 6, 6, 6, 2]
    assert {info.name: info.images for info in index.classes} == {"0": 9, "1": 9, "2": 8}


def change_a_byte(tars: Path) -> None:
    content = bytearray((tars / "set-000002.tar").read_bytes())
    content[600] ^= 1
    (tars / "set-000002.tar").write_bytes(content)


def grow(tars: Path) -> None:
    with (tars / "set-000002.tar").open("ab") as file:
        file.write(bytes(10240))


def lose(tars: Path) -> None:
    (tars / "set-000002.tar").unlink()


def add(tars: Path) -> None:
    shutil.copy(tars / "set-000002.tar", tars / "set-000009.tar")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_a_byte, r"set-000002\.tar does not have the SHA-256 of its index.*fasttrain-data"),
        (grow, r"set-000002\.tar has 40960 bytes, its index says 30720"),
        (lose, r"set-000002\.tar is not there any more.*fasttrain-data index --force"),
        (add, r"set-000009\.tar is new.*fasttrain-data index --force"),
    ],
)
def test_a_set_that_changed_under_its_index_is_named(
    tars: Path, change: Callable[[Path], None], message: str
) -> None:
    change(tars)
    with pytest.raises(UserError, match=message):
        seen(stream_of(tars), 10)
    run_indexing(str(tars), force=True, workers=1)
    if change is not change_a_byte:
        seen(stream_of(tars), 10)


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


def test_verify_hashes_every_tar_and_decodes_every_image(tars: Path, tmp_path: Path) -> None:
    assert verify_tars(str(tars), workers=1).images == IMAGES
    change_a_byte(tars)
    with pytest.raises(VerificationError, match=r"set-000002\.tar does not have the SHA-256"):
        verify_tars(str(tars), workers=1)
    path = tars / "set-000000.tar"
    path.write_bytes(path.read_bytes().replace(photo(3), b"x" * len(photo(3))))
    run_indexing(str(tars), workers=1, force=True)
    with pytest.raises(VerificationError, match=r"set-000000\.tar: 00003: not an image"):
        verify_tars(str(tars), workers=1)
    lose(tars)
    with pytest.raises(VerificationError, match=r"set-000002\.tar is not both in .*index\.json"):
        verify_tars(str(tars), workers=1)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("{tars}/set-{{000000..000009}}.tar", "cannot read .*set-000005.tar: No such file"),
        ("{tars}/nothing", "it is neither a folder nor a .tar"),
        ("{tars}/set-000000.tar::{tars}/set-000000.tar", "is named twice"),
        ("{tars}/fasttrain-index", "no tars at"),
        ("{tars}/{{0..99999999}}.tar", "are more than 1000000 tars"),
    ],
)
def test_what_names_no_tars_is_told(tars: Path, spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        run_indexing(spec.format(tars=tars), workers=1)


def test_tars_without_an_index_name_the_command(tmp_path: Path) -> None:
    folder = write_shards(tmp_path / "my tars", images=4, per_shard=2)
    with pytest.raises(UserError, match=r"has no index .*`fasttrain-data index '.*/my tars'`"):
        stream_of(folder)


def test_sizes_must_be_chosen(tars: Path) -> None:
    with pytest.raises(UserError, match=r"data\.resolution"):
        stream_of(tars, View())


def test_an_index_of_other_fields_is_replaced_by_force_alone(tars: Path) -> None:
    with pytest.raises(DataError, match="index of other tars or fields: replace it with --force"):
        run_indexing(str(tars), fields=Fields(label=".cls"))
    assert not run_indexing(str(tars), fields=Fields(label=".cls"), force=True).already_there
