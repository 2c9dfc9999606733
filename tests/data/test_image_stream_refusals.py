"""One clear line for each thing that can be wrong with a stream: its settings, stages, shards and
cursor."""

from __future__ import annotations

import json
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import webdataset

from fasttrain.data import ImageStream
from fasttrain.data.fitting import images_per_shard
from fasttrain.data.storage import FolderStorage
from fasttrain.system.errors import Unavailable, UserError
from fasttrain_data import convert


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        (webdataset.select(lambda sample: sample["label"] == 0), "dropped, added or reordered"),
        (lambda source: (sample for sample in source for _ in range(2)), "dropped, added"),
        (webdataset.shuffle(20), "dropped, added or reordered"),
        (lambda source: iter(()), "dropped, added or reordered"),
        (
            webdataset.map(lambda sample: {**sample, "image": sample["image"] / 2}),
            r"an image of float64 \[1, 4, 4\]: it must stay uint8",
        ),
        (
            webdataset.map(lambda sample: {**sample, "image": sample["image"][:, 1:]}),
            r"an image of uint8 \[1, 3, 4\]",
        ),
    ],
)
def test_a_user_stage_that_breaks_the_order_is_refused(
    shards: Path, stage: Any, message: str
) -> None:
    stream = ImageStream(shards, batch=20, streams=2, seed=0, stages=[stage])
    with pytest.raises(UserError, match=message):
        list(islice(stream, 3))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch": 10}, "batch 10 does not divide into 4 streams"),
        (
            {"world_size": 3},
            "8 does not divide over 3 processes: .* must divide batch, so use one of 1, 2, 4, 8",
        ),
        (
            {"streams": 12, "batch": 12},
            r"9 shards, fewer than the 12 .*leave data.* out.*--images-per-shard 4",
        ),
        ({"streams": 60, "batch": 60}, "53 images, fewer than the 60 streams"),
        ({"rank": 1}, "rank 1 is not in 0 to 0"),
        ({"batch": 0}, "batch is 0"),
        ({"streams": 0}, "streams is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"window": 0}, "window is 0"),
        ({"resolution": 8}, "are 4x4, the settings say 8x8: .*--resolution 8"),
        ({"channels": 3}, "have 1 channels, the settings say 3"),
        ({"label_dim": 10}, "has 3 classes, the settings say label_dim 10: set it to 3"),
    ],
)
def test_settings_that_do_not_fit_are_named(
    shards: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        ImageStream(shards, **{"batch": 8, "streams": 4, "seed": 0, **options})
    assert "\n" not in str(caught.value)


def test_the_advice_on_images_per_shard_works(make_set: Callable[..., Path]) -> None:
    path = make_set(counts=[11], per_shard=11)
    with pytest.raises(UserError, match="--images-per-shard 2"):
        ImageStream(path, batch=4, streams=4, seed=0)
    convert(path.parent / "in", path.parent / "set2", images_per_shard=2)
    ImageStream(path.parent / "set2", batch=4, streams=4, seed=0)


@pytest.mark.parametrize(
    ("images", "streams", "advice", "shards"),
    [(50_000, 64, 393, 128), (1_281_167, 64, 910, 1408), (12, 4, 3, 4), (5, 4, 1, 5)],
)
def test_the_advice_is_as_many_shards_for_each_stream(
    images: int, streams: int, advice: int, shards: int
) -> None:
    assert images_per_shard(images, streams) == advice
    assert -(-images // advice) == shards


def test_a_single_class_has_no_label_dim(make_set: Callable[..., Path]) -> None:
    path = make_set(counts=[8], per_shard=2)
    with pytest.raises(UserError, match="has 1 classes, the settings say label_dim 1: set it to 0"):
        ImageStream(path, batch=4, streams=4, seed=0, label_dim=1)


def test_missing_and_changed_shards_are_named(make_set: Callable[..., Path]) -> None:
    path = make_set(counts=[8, 8], per_shard=4)
    options: dict[str, Any] = {"batch": 8, "streams": 4, "seed": 0}
    with pytest.raises(UserError, match=r"no shards at .*nowhere: make them with `fasttrain-data"):
        ImageStream(path / "nowhere", **options)
    shard = path / "shard-000002.tar"
    data = shard.read_bytes()

    shard.write_bytes(data[:-512])
    with pytest.raises(UserError, match=r"shard-000002\.tar has 9728 bytes, its index says 10240"):
        ImageStream(path, **options)

    shard.write_bytes(data)
    stream = ImageStream(FolderStorage(path, attempts=1), **options)
    shard.unlink()
    with pytest.raises(Unavailable, match=r"shard-000002\.tar: it does not exist any more \(1 at"):
        next(stream)
    with pytest.raises(UserError, match=r"missing shard .*shard-000002\.tar"):
        ImageStream(path, **options)

    flipped = bytearray(data)
    flipped[700] ^= 1
    shard.write_bytes(bytes(flipped))
    with pytest.raises(UserError, match=r"shard-000002\.tar does not have the SHA-256"):
        next(ImageStream(path, **options))


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("classes", [{"name": "a", "images": 16}], "has label 1, the index has 1 classes"),
        ("resolution", 5, "is 4x4, the index says 5x5"),
        ("channels", 3, "does not have the 3 channels"),
    ],
)
def test_records_that_differ_from_the_index_are_named(
    make_set: Callable[..., Path], key: str, value: object, message: str
) -> None:
    path = make_set(counts=[8, 8], per_shard=4)
    index = json.loads((path / "index.json").read_text())
    index[key] = value
    (path / "index.json").write_text(json.dumps(index))
    stream = ImageStream(path, batch=16, streams=4, seed=0)
    with pytest.raises(UserError, match=rf"shard-00000\d\.tar: \d+(\.png)? {message}"):
        next(stream)


@pytest.mark.parametrize("change", [-1, 1])
def test_a_shard_with_another_count_is_named(make_set: Callable[..., Path], change: int) -> None:
    path = make_set(counts=[16], per_shard=4)
    index = json.loads((path / "index.json").read_text())
    index["shards"][1]["images"] += change
    index["shards"][2]["images"] -= change
    (path / "index.json").write_text(json.dumps(index))
    stream = ImageStream(path, batch=16, streams=4, seed=0)
    with pytest.raises(UserError, match=r"shard-00000[12]\.tar has (more|fewer) images than"):
        list(islice(stream, 4))


def test_a_cursor_of_another_run_is_refused(shards: Path, make_set: Callable[..., Path]) -> None:
    stream = ImageStream(shards, batch=8, streams=4, seed=0)
    state = stream.state_dict()
    with pytest.raises(UserError, match="cursor has 4 streams, the settings have 2"):
        ImageStream(shards, batch=8, streams=2, seed=0).load_state_dict(state)
    path = make_set(counts=[53], per_shard=6)
    with pytest.raises(UserError, match="is not the shard set of this run"):
        ImageStream(path, batch=8, streams=4, seed=0).load_state_dict(state)
    other = shards.parent / "other-shards"
    convert(shards.parent / "in", other, images_per_shard=7)
    with pytest.raises(UserError, match="holds this run's images in other shards"):
        ImageStream(other, batch=8, streams=4, seed=0).load_state_dict(state)
    state["streams"]["2"]["position"] = 1000
    with pytest.raises(UserError, match="cursor of stream 2 is outside"):
        stream.load_state_dict(state)
    del state["content_sha256"]  # optional: a merged state may hold the cursors alone
    state["streams"]["2"]["position"] = 5
    stream.load_state_dict(state)
    assert stream.state_dict()["streams"]["2"] == {"epoch": 0, "position": 5, "skipped": 0}
