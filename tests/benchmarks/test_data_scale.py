"""The scale benchmark's questions, asked of a small set."""

from __future__ import annotations

import os
from mmap import mmap
from pathlib import Path

import numpy as np
import pytest

from benchmarks.data_scale import (
    EPOCHS,
    Rank,
    balance,
    every_image_once,
    index_row,
    long_read,
    memory,
    resampled,
    start_row,
)
from benchmarks.synthetic_set import SyntheticSource, convert, numbers_of, verify
from fasttrain_data import load_index

IMAGES, SHARDS, STREAMS = 10_050, 67, 16
needs_proc = pytest.mark.skipif(memory(os.getpid()) == 0, reason="/proc tells no memory here")


@pytest.fixture(scope="module")
def synthetic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """67 shards of 150 images."""
    path = tmp_path_factory.mktemp("scale") / "set"
    convert(path, IMAGES, per_shard=150, workers=1)
    return path


def rank(path: Path, *, workers: int = 0, resampled: bool = False) -> Rank:
    return Rank(path=path, workers=workers, resampled=resampled, world=4, streams=STREAMS, batch=64)


def test_an_image_tells_its_number() -> None:
    source = SyntheticSource(2000)
    items = [0, 1, 999, 1999]
    images = np.stack([source.pixels(item).transpose(2, 0, 1) for item in items])
    assert numbers_of(images).tolist() == items


def test_the_set_is_sound_and_an_epoch_holds_every_image_once(synthetic: Path) -> None:
    verify(synthetic, workers=1)
    found = every_image_once(synthetic, STREAMS)
    assert (found["images"], found["once"]) == (IMAGES, IMAGES)


def test_no_stream_is_ever_ahead_by_more_than_a_shard(synthetic: Path) -> None:
    index = load_index(synthetic)
    found = balance(index, STREAMS, readers=STREAMS, ranks=STREAMS)
    assert found["stream"] == [4 * 150, 5 * 150]  # 67 shards over 16 streams
    low, high = found["rank_all_epochs"]  # a rank is a stream here
    assert high - low == 150
    assert low <= EPOCHS * IMAGES / STREAMS <= high


def test_resampling_draws_all_shards_alike(synthetic: Path) -> None:
    found = resampled(load_index(synthetic), STREAMS)
    draws = EPOCHS * SHARDS // STREAMS * STREAMS
    assert found["mean"] == draws / SHARDS
    low, high = found["shard"]
    assert low < found["mean"] < high < 4 * found["mean"]


def test_the_index_of_more_images_is_larger_in_proportion(synthetic: Path) -> None:
    index = load_index(synthetic)
    rows = [index_row(index, images, streams=4) for images in (IMAGES, 10 * IMAGES)]
    assert [row["shards"] for row in rows] == [SHARDS, 10 * SHARDS]
    assert 8 < rows[1]["bytes"] / rows[0]["bytes"] < 10


@pytest.mark.parametrize("resampled", [False, True])
def test_a_resume_gives_the_batch_that_would_have_come(synthetic: Path, resampled: bool) -> None:
    for workers in (0, 2):
        found = start_row(rank(synthetic, workers=workers, resampled=resampled))
        assert found["same"], f"{workers} workers"


@needs_proc
def test_memory_stays_flat_over_many_epochs(synthetic: Path) -> None:
    found = long_read(rank(synthetic), images=60_000)
    assert found["images"] == 60_000 // 16 // 8 * 8 * 16
    assert max(found["at"]) - found["at"][0] < 16e6


@needs_proc
def test_memory_is_that_of_this_process() -> None:
    before = memory(os.getpid())
    held = mmap(-1, 64 << 20)  # not of the heap, which may have that much left of other tests
    np.frombuffer(held, np.uint8)[:] = 1
    assert memory(os.getpid()) - before > 0.9 * len(held)
