"""The stream of batches: every image once an epoch, the same global batches at every world size, an
exact cursor."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttrain.data import ImageStream
from fasttrain.data.order import Cursor, EpochOrder
from fasttrain.system.errors import UserError
from fasttrain_data import load_index
from tests.data.batches import IMAGES, global_batches, merged, values


@settings(max_examples=40, deadline=None)
@given(
    streams=st.integers(1, 9),
    window=st.integers(1, 60),
    seed=st.integers(0, 2**64),
)
def test_every_image_once_an_epoch(shards: Path, streams: int, window: int, seed: int) -> None:
    stream = ImageStream(shards, batch=streams, streams=streams, seed=seed, window=window)
    for epoch in (0, 1):
        seen: list[int] = []
        for number in range(streams):
            samples = iter(stream.pipeline(number, Cursor(epoch, 0)))
            for position in range(stream.order.images(epoch, number)):
                sample = next(samples)
                assert sample["cursor"] == Cursor(epoch, position)
                seen.append(int(sample["image"][0, 0, 0]))
            assert next(samples)["cursor"] == Cursor(epoch + 1, 0)
        assert sorted(seen) == list(range(IMAGES))


@settings(max_examples=25, deadline=None)
@given(
    per_stream=st.integers(1, 5),
    window=st.integers(1, 30),
    before=st.integers(0, 30),
    worlds=st.tuples(st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4])),
)
def test_resume_anywhere_at_any_world_size_equals_the_uninterrupted_stream(
    shards: Path, per_stream: int, window: int, before: int, worlds: tuple[int, int]
) -> None:
    options: dict[str, Any] = {"batch": 4 * per_stream, "streams": 4, "seed": 3, "window": window}
    expected = global_batches(shards, before + 12, **options)
    first = [ImageStream(shards, rank=r, world_size=worlds[0], **options) for r in range(worlds[0])]
    for batch in expected[:before]:
        assert [value for rank in first for value in values(next(rank))] == batch
    second = [
        ImageStream(shards, rank=r, world_size=worlds[1], **options) for r in range(worlds[1])
    ]
    for rank in second:
        rank.load_state_dict(merged(first))
    for number, batch in enumerate(expected[before:], start=before):
        found = [next(rank) for rank in second]
        assert [value for part in found for value in values(part)] == batch
        index = torch.cat([part.index for part in found])
        start = number * options["batch"]
        assert index.tolist() == list(range(start, start + options["batch"]))


@pytest.mark.parametrize("world_size", [2, 4, 8])
def test_world_sizes_see_the_same_global_batches(shards: Path, world_size: int) -> None:
    options: dict[str, Any] = {"batch": 16, "streams": 8, "seed": 1, "window": 7}
    expected = global_batches(shards, 15, **options)
    assert global_batches(shards, 15, world_size, **options) == expected


def test_order_differs_by_epoch_and_seed_and_repeats_by_seed(shards: Path) -> None:
    options: dict[str, Any] = {"batch": 1, "streams": 1}
    (first, second) = np.array(global_batches(shards, 2 * IMAGES, seed=0, **options)).reshape(2, -1)
    assert sorted(first) == sorted(second) == list(range(IMAGES))
    assert not np.array_equal(first, second)
    again = np.array(global_batches(shards, IMAGES, seed=0, **options)).ravel()
    np.testing.assert_array_equal(first, again)
    other = np.array(global_batches(shards, IMAGES, seed=1, **options)).ravel()
    assert not np.array_equal(first, other)


def test_streams_share_shards_fairly() -> None:
    order = EpochOrder([5] * 10, streams=4, seed=0, window=512)
    totals = [sum(order.images(epoch, stream) for epoch in range(4)) for stream in range(4)]
    assert totals == [50] * 4  # over four epochs each stream is dealt the two odd shards twice
    for epoch in range(3):
        dealt = [shard for stream in range(4) for shard in order.shards(epoch, stream)]
        assert sorted(dealt) == list(range(10))


def test_the_first_global_batch_never_changes(shards: Path) -> None:
    # The order is part of a run's identity: it must be the same on every machine and version.
    assert global_batches(shards, 2, batch=8, streams=4, seed=7) == [
        [27, 37, 2, 42, 44, 7, 18, 19],
        [24, 0, 50, 8, 35, 45, 52, 20],
    ]


def test_labels_pixels_and_index(shards: Path) -> None:
    stream = ImageStream(shards, batch=8, streams=4, seed=0, first_index=1000)
    assert (stream.manifest.images, stream.label_dim) == (IMAGES, 3)
    for number in range(10):
        batch = next(stream)
        assert batch.class_labels is not None
        assert batch.class_labels.dtype == torch.float32
        labels = [0 if value < 20 else 1 if value < 50 else 2 for value in values(batch)]
        assert torch.equal(batch.class_labels, torch.eye(3)[labels])
        expected = torch.tensor(values(batch)).float() / 127.5 - 1
        on_device = batch.to("cpu")
        assert torch.equal(on_device.images[:, 0, 0, 0], expected)
        assert on_device.images.dtype == torch.float32
        assert torch.equal(on_device.to("cpu").images, on_device.images)
        start = 1000 + 8 * number
        assert torch.equal(batch.index, torch.arange(start, start + 8))
        assert batch.share == 1.0


def test_colour_images_keep_their_channels_apart(tmp_path: Path) -> None:
    from fasttrain_data import convert
    from fasttrain_data.records import encode_image as encode_png

    pixels = np.random.default_rng(0).integers(0, 256, (5, 5, 3), dtype=np.uint8)
    (tmp_path / "in/a").mkdir(parents=True)
    (tmp_path / "in/a/x.png").write_bytes(encode_png(pixels))
    convert(tmp_path / "in", tmp_path / "set")
    batch = next(ImageStream(tmp_path / "set", batch=2, streams=1, seed=0, channels=3)).to("cpu")
    expected = torch.from_numpy(pixels).permute(2, 0, 1).float() / 127.5 - 1
    assert torch.equal(batch.images, expected.expand(2, 3, 5, 5))
    assert batch.class_labels is None  # a single class


def test_label_dim_zero_gives_no_labels(shards: Path) -> None:
    assert next(ImageStream(shards, batch=4, streams=4, seed=0, label_dim=0)).class_labels is None


def test_split_parts_add_up(shards: Path) -> None:
    batch = next(ImageStream(shards, batch=10, streams=2, seed=0)).to("cpu")
    parts = batch.split(4)
    assert [len(part) for part in parts] == [4, 4, 2]
    assert sum(part.share for part in parts) == pytest.approx(1)
    mean = sum(part.share * part.images.mean() for part in parts)
    assert mean == pytest.approx(float(batch.images.mean()), abs=1e-6)
    assert torch.equal(torch.cat([part.index for part in parts]), batch.index)
    labels = [part.class_labels for part in parts if part.class_labels is not None]
    assert batch.class_labels is not None
    assert torch.equal(torch.cat(labels), batch.class_labels)
    nested = [part.share for half in batch.split(5) for part in half.split(3)]
    assert nested == pytest.approx([0.3, 0.2, 0.3, 0.2])
    assert batch.split(10) == batch.split(99) == [batch]
    unlabelled = dataclasses.replace(batch, class_labels=None)
    assert [part.class_labels for part in unlabelled.split(5)] == [None, None]
    assert torch.equal(batch.to("cpu").images, batch.images)
    with pytest.raises(UserError, match="micro_batch is 0"):
        batch.split(0)


def test_a_user_stage_is_a_map(shards: Path) -> None:
    def invert(sample: dict[str, Any]) -> dict[str, Any]:
        return {**sample, "image": 255 - sample["image"]}

    options: dict[str, Any] = {"batch": 4, "streams": 2, "seed": 0}
    plain = global_batches(shards, 30, **options)
    changed = global_batches(shards, 30, stages=[webdataset.map(invert)], **options)
    assert changed == [[255 - value for value in batch] for batch in plain]


def test_a_run_keeps_the_streams_that_its_cursor_has(shards: Path) -> None:
    """As one does that was begun when streams were batch / norm_group, or with `data.streams`."""
    old = ImageStream(shards, batch=8, streams=4, seed=0)
    next(old)
    ranks = [ImageStream(shards, batch=8, seed=0, rank=rank, world_size=8) for rank in range(8)]
    assert ranks[0].streams == 2
    for rank in ranks:
        rank.load_state_dict(old.state_dict())
    for _ in range(20):
        assert [value for rank in ranks for value in values(next(rank))] == values(next(old))
    assert json.dumps(merged(ranks)) == json.dumps(merged([old]))
    with pytest.raises(UserError, match="has 4 streams, which do not fit a batch of 6 images"):
        ImageStream(shards, batch=6, seed=0).load_state_dict(old.state_dict())
    state = old.state_dict() | {"streams": {}}
    with pytest.raises(UserError, match="has 0 streams, which do not fit"):
        ImageStream(shards, batch=8, seed=0).load_state_dict(state)


def test_the_stream_holds_only_its_own_cursors(shards: Path) -> None:
    stream = ImageStream(shards, batch=8, streams=4, seed=0, rank=1, world_size=2)
    next(stream)
    assert stream.state_dict() == {
        "batches": 1,
        "seed": 0,
        "streams": {str(stream): {"epoch": 0, "position": 2, "skipped": 0} for stream in (2, 3)},
        "content_sha256": load_index(shards).content_sha256,
        "shards": "15f04e8834b07712",
        "classes": [info.name for info in load_index(shards).classes],
    }
