"""Shard sets whose pixels tell which image it is: all pixels of image i have the value i. And one
of noise, large enough to break off in its middle, with what it takes to read it from a server."""

from __future__ import annotations

import multiprocessing.util
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fasttrain.data import Remote
from fasttrain_data import Index, convert, load_index
from fasttrain_data.indexing import run_indexing
from fasttrain_data.records import encode_image as encode_png
from tests.data.servers import Nginx, wait_for
from tests.data.tars import IMAGES
from tests.foreign import write_shards


def write_set(folder: Path, *, counts: Sequence[int], per_shard: int, channels: int = 1) -> Path:
    """Classes with `counts` images, in shards of at most `per_shard`; 4x4, values 0, 1, 2..."""
    value = 0
    for label, count in enumerate(counts):
        (folder / "in" / f"class{label}").mkdir(parents=True)
        for _ in range(count):
            pixels = np.full((4, 4, channels), value, np.uint8)
            (folder / f"in/class{label}/{value:03d}.png").write_bytes(encode_png(pixels))
            value += 1
    convert(folder / "in", folder / "set", images_per_shard=per_shard)
    return folder / "set"


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """53 images of three classes in nine shards of five or six images."""
    return write_set(tmp_path_factory.mktemp("shards"), counts=(20, 30, 3), per_shard=6)


@pytest.fixture
def make_set(tmp_path: Path) -> Callable[..., Path]:
    def make(**options: object) -> Path:
        return write_set(tmp_path, **options)  # type: ignore[arg-type]

    return make


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four shards of 16 images that do not compress: about 3.2 MB each."""
    made = tmp_path_factory.mktemp("noise")
    random = np.random.default_rng(0)
    for label in "ab":
        (made / "in" / label).mkdir(parents=True)
        for number in range(32):
            pixels = random.integers(0, 256, (256, 256, 3), dtype=np.uint8)
            (made / f"in/{label}/{number}.png").write_bytes(encode_png(pixels))
    convert(made / "in", made / "set", images_per_shard=16)
    return made / "set"


@pytest.fixture
def index(folder: Path) -> Index:
    return load_index(folder)


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """The folder, to be spoilt."""
    (tmp_path / "copy").mkdir()
    for file in folder.iterdir():
        (tmp_path / "copy" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "copy"


@pytest.fixture
def remote(tmp_path: Path) -> Callable[..., Remote]:
    def make(**options: Any) -> Remote:
        return Remote(**{"cache": tmp_path / "cache", "timeout": 5, "attempts": 3, **options})

    return make


@pytest.fixture
def serve(folder: Path, tmp_path: Path) -> Iterator[Callable[..., Nginx]]:
    """nginx in front of the set, killed at the end."""
    running: list[Nginx] = []

    def start(root: Path = folder, extra: str = "") -> Nginx:
        running.append(Nginx(root, tmp_path / f"nginx-{len(running)}", extra))
        return running[-1]

    yield start
    for nginx in running:
        nginx.kill()


@pytest.fixture
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


@pytest.fixture
def no_process_is_left() -> Iterator[None]:
    yield
    wait_for(lambda: not multiprocessing.active_children())
