"""Sets of latents: written whole, gone on with, verified, refused where images are wanted."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from fasttrain_data import DataError, convert, load_index, preview, split, verify
from fasttrain_data.encoding import encode
from fasttrain_data.index import LatentInfo, parse_index
from fasttrain_data.indexing import run_indexing
from fasttrain_data.reader import decode_record, open_shard, read_records
from tests.faults.child import forked
from tests.latents import squares


class Halves:
    """Means that are the images' every second pixel, deviations that are a quarter of them."""

    def __init__(self, flips: bool = False, factor: float = 1.0, most: int = 1000) -> None:
        self.flips, self.factor, self.most, self.seen = flips, factor, most, 0

    def layout(self, resolution: int, colours: int) -> tuple[LatentInfo, int, int]:
        info = LatentInfo(
            scale=0.5,
            shift=0.0,
            low=-1,
            flips=self.flips,
            resolution=resolution,
            colours=3,
            vae_sha256="ab" * 32,
        )
        return info, colours, resolution // 2

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        self.seen += len(pixels)
        if self.seen > self.most:
            raise MemoryError("killed")
        sides = [pixels, pixels[:, :, ::-1]][: 2 if self.flips else 1]
        means = [s[:, ::2, ::2].transpose(0, 3, 1, 2) * np.float32(self.factor) for s in sides]
        return np.concatenate([part for m in means for part in (m, m / 4)], axis=1)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("images")
    convert(squares(root / "files", 20, 8), root / "set", images_per_shard=8)
    return root / "set"


def read(folder: Path) -> list[tuple[npt.NDArray[np.uint8], int]]:
    index = load_index(folder)
    found = []
    for shard in index.shards:
        with open_shard(folder, shard, check_hash=True) as file:
            for record in read_records(file, index, name=shard.name):
                found.append((decode_record(record, index, name=shard.name), record.label))
    return found


@pytest.mark.parametrize("flips", [False, True])
def test_means_and_deviations_are_stored_in_the_images_order(
    images: Path, tmp_path: Path, flips: bool
) -> None:
    index, there = encode(images, tmp_path / "out", Halves(flips), batch=3)
    assert not there
    assert (index.resolution, index.channels, index.images) == (4, 3, 20)
    assert verify(tmp_path / "out") == index
    rows = zip(read(images), read(tmp_path / "out"), strict=True)
    for (pixels, label), (stored, same) in rows:
        assert label == same
        values = np.ascontiguousarray(stored.transpose(2, 0, 1)).view("<f2")
        (expected,) = Halves(flips)(pixels[None])
        np.testing.assert_array_equal(values, expected.astype("<f2"))
    assert encode(images, tmp_path / "out", Halves(flips)) == (index, True)


def test_the_same_command_goes_on_where_it_was_killed(images: Path, tmp_path: Path) -> None:
    whole = encode(images, tmp_path / "whole", Halves())[0]
    with pytest.raises(MemoryError):
        encode(images, tmp_path / "out", Halves(most=10), batch=4)
    assert not (tmp_path / "out").exists()
    second = Halves()
    assert encode(images, tmp_path / "out", second, batch=4)[0] == whole
    assert second.seen < 20  # the first shard was there


class Slow(Halves):
    """Slow enough to be killed in the middle."""

    def __call__(self, pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        time.sleep(0.05)
        return super().__call__(pixels)


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_sigkill_at_any_shard_and_the_same_command_gives_the_same_bytes(
    images: Path, tmp_path: Path
) -> None:
    encode(images, tmp_path / "whole", Halves(), batch=4)
    for finished in (1, 2):
        out = tmp_path / f"killed-{finished}"
        child = forked(tmp_path / "log", lambda out=out: encode(images, out, Slow(), batch=4))
        while len(list(tmp_path.glob(f".{out.name}.partial-*/*.tar.json"))) < finished:
            assert not child.ended(), child.said()
            time.sleep(0.002)
        os.kill(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL, "it ended before it was killed"
        assert not out.exists()
        second = Halves()
        encode(images, out, second, batch=4)
        assert second.seen < 20  # what was finished is not encoded again
        assert files_of(out) == files_of(tmp_path / "whole")
    assert not list(tmp_path.glob(".*.partial-*"))


class Threads:
    """A team of threads."""

    def __init__(self, size: int) -> None:
        self.barrier, self.errors = threading.Barrier(size, timeout=60), list[Exception | None]()
        self.size = size

    def member(self, rank: int) -> Member:
        return Member(self, rank)


@dataclass(frozen=True)
class Member:
    team: Threads
    rank: int

    @property
    def size(self) -> int:
        return self.team.size

    def agree(self, error: Exception | None) -> None:
        self.team.errors.append(error)
        self.team.barrier.wait()
        first = next(filter(None, self.team.errors), None)
        self.team.barrier.wait()
        if first is not None:
            raise first


@pytest.mark.parametrize("size", [2, 5])
def test_several_processes_write_the_shards_of_one(images: Path, tmp_path: Path, size: int) -> None:
    alone = encode(images, tmp_path / "alone", Halves(), batch=4)[0]
    team, encoders = Threads(size), [Halves() for _ in range(size)]
    with ThreadPoolExecutor(size) as pool:
        done = pool.map(
            lambda r: encode(images, tmp_path / "out", encoders[r], batch=4, team=team.member(r)),
            range(size),
        )
        assert list(done) == [(alone, False)] * size
    assert files_of(tmp_path / "out") == files_of(tmp_path / "alone")
    assert sum(encoder.seen for encoder in encoders) == 20
    assert sum(encoder.seen > 0 for encoder in encoders) == min(size, 3)


def test_an_error_of_one_process_ends_all(images: Path, tmp_path: Path) -> None:
    team, encoders = Threads(2), [Halves(), Halves(factor=1e4)]
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(encode, images, tmp_path / "out", encoders[r], team=team.member(r))
            for r in range(2)
        ]
    for call in calls:
        with pytest.raises(DataError, match="beyond float16"):
            call.result()
    assert not (tmp_path / "out").exists()
    encode(images, tmp_path / "out", again := Halves())  # what the others finished stays
    assert again.seen < 20


def test_images_that_one_process_lacks_end_all(images: Path, tmp_path: Path) -> None:
    team, places = Threads(2), [images, tmp_path / "nowhere"]
    with ThreadPoolExecutor(2) as pool:
        calls = [
            pool.submit(encode, places[r], tmp_path / "out", Halves(), team=team.member(r))
            for r in range(2)
        ]
    for call in calls:
        with pytest.raises(DataError, match="nowhere"):
            call.result()


def test_another_autoencoder_does_not_go_on(images: Path, tmp_path: Path) -> None:
    encode(images, tmp_path / "out", Halves())
    with pytest.raises(DataError, match="holds other shards"):
        encode(images, tmp_path / "out", Halves(flips=True))
    with pytest.raises(DataError, match="holds the images themselves"):
        encode(images, images / ".", Halves(), force=True)
    assert load_index(images).record != "latents"
    index, _ = encode(images, tmp_path / "out", Halves(flips=True), force=True)
    assert load_index(tmp_path / "out") == index


def test_numbers_beyond_float16_are_refused(images: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="beyond float16"):
        encode(images, tmp_path / "out", Halves(factor=1e4))
    assert not (tmp_path / "out").exists()


def test_latents_are_no_images(images: Path, tmp_path: Path) -> None:
    encode(images, tmp_path / "out", Halves())
    for work in (
        lambda: convert(tmp_path / "out", tmp_path / "again"),
        lambda: split(tmp_path / "out", tmp_path / "a", tmp_path / "b", share=0.5),
        lambda: preview(tmp_path / "out", tmp_path / "sheet.png"),
        lambda: encode(tmp_path / "out", tmp_path / "twice", Halves()),
    ):
        with pytest.raises(DataError, match="holds latents, not images"):
            work()


def test_tars_that_are_no_shards_are_to_be_converted(images: Path, tmp_path: Path) -> None:
    tars = tmp_path / "tars"
    shutil.copytree(images, tars, ignore=shutil.ignore_patterns("index.json"))
    index = run_indexing(str(tars)).folder
    for place in (tars, index):
        with pytest.raises(DataError, match=r"convert TARS OUT --resolution N") as caught:
            encode(place, tmp_path / "out", Halves())
        assert "data index" not in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [("record", "raw"), ("format_version", 2), ("channels", 65), ("latents", None)],
)
def test_an_index_that_contradicts_itself_is_refused(
    images: Path, tmp_path: Path, field: str, value: object
) -> None:
    index = encode(images, tmp_path / "out", Halves())[0]
    table = json.loads(index.to_json()) | {field: value}
    with pytest.raises(DataError, match="not a valid index"):
        parse_index(json.dumps(table).encode(), "index.json")


def test_an_index_of_images_is_as_it_was(images: Path) -> None:
    text = (images / "index.json").read_text()
    assert "latents" not in text
    assert '"format_version": 2' in text
