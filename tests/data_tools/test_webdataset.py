"""WebDataset shards as other tools write them, converted: labels by value, keys, fields, refusals.
The inputs are written by webdataset's own ShardWriter, but for what it would not write."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from PIL import Image

from fasttrain_data import DataError, convert
from fasttrain_data.index import Index
from fasttrain_data.reader import decode_record, open_shard, read_records
from fasttrain_data.samples import split_name

Sample = Mapping[str, Any]


def picture(value: int, ending: str = "png") -> bytes:
    """A 6x6 grey image of one value."""
    buffer = io.BytesIO()
    kind = {"jpg": "JPEG", "jpeg": "JPEG", "webp": "WEBP", "png": "PNG"}[ending]
    Image.new("L", (6, 6), value).save(
        buffer, kind, **({"lossless": True} if kind == "WEBP" else {})
    )
    return buffer.getvalue()


def write_tar(path: Path, samples: Sequence[Sample]) -> Path:
    """Samples {"__key__", field: bytes, text, number or table}, by webdataset's own writer."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(dict(sample))
    return path


def samples(*labels: Any, field: str = "cls", ending: str = "png", first: int = 0) -> list[Sample]:
    return [
        {"__key__": f"{n:04d}", ending: picture(n * 10, ending), field: label}
        for n, label in enumerate(labels, first)
    ]


def counts(index: Index) -> dict[str, int]:
    return {info.name: info.images for info in index.classes}


def values(folder: Path, index: Index) -> dict[int, int]:
    """Label by pixel value of each image."""
    found = {}
    for shard in index.shards:
        with open_shard(folder, shard, check_hash=True) as file:
            for record in read_records(file, index, name=shard.name):
                found[int(decode_record(record, index, name="").flat[0])] = record.label
    return found


@pytest.mark.parametrize("ending", ["jpg", "jpeg", "png", "webp"])
def test_class_numbers(tmp_path: Path, ending: str) -> None:
    write_tar(tmp_path / "train-0000.tar", samples(0, 2, 2, ending=ending))
    index = convert(tmp_path / "train-0000.tar", tmp_path / "out", channels=1)
    assert counts(index) == {"0": 1, "1": 0, "2": 2}
    found = values(tmp_path / "out", index)
    assert {round(value, -1): label for value, label in found.items()} == {0: 0, 10: 2, 20: 2}


def test_texts_are_classes_over_all_tars_whose_names_are_none(tmp_path: Path) -> None:
    for number, labels in enumerate([("dog", "cat"), ("cat", "eel")]):
        write_tar(
            tmp_path / f"in/set-{number:04d}.tar",
            samples(*[text.encode() for text in labels], first=2 * number),
        )
    index = convert(tmp_path / "in", tmp_path / "out")
    assert counts(index) == {"cat": 2, "dog": 1, "eel": 1}
    assert values(tmp_path / "out", index) == {0: 1, 10: 0, 20: 0, 30: 2}


@pytest.mark.parametrize(
    ("label_field", "classes"),
    [(None, {"0": 1, "1": 2}), ("kind", {"a": 2, "b": 1}), (".txt", {"x": 1, "y": 1, "z": 1})],
)
def test_label_field(tmp_path: Path, label_field: str | None, classes: dict[str, int]) -> None:
    rows = [(0, "a", "x"), (1, "b", "y"), (1, "a", "z")]
    content = [
        {"__key__": str(n), "png": picture(n), "cls": c, "json": {"kind": kind}, "txt": text}
        for n, (c, kind, text) in enumerate(rows)
    ]
    write_tar(tmp_path / "in.tar", content)
    index = convert(tmp_path / "in.tar", tmp_path / "out", label_field=label_field)
    assert counts(index) == classes


def test_several_images_a_sample_need_an_image_key(tmp_path: Path) -> None:
    content = [
        {"__key__": str(n), "input.png": picture(n), "target.png": picture(100 + n), "cls": n}
        for n in range(2)
    ]
    write_tar(tmp_path / "in.tar", content)
    with pytest.raises(DataError, match=r"sample 0 has several images.*--image-key input\.png"):
        convert(tmp_path / "in.tar", tmp_path / "out")
    index = convert(tmp_path / "in.tar", tmp_path / "out", image_key="target.png")
    assert values(tmp_path / "out", index) == {100: 0, 101: 1}


def test_keys_in_folders_are_kept_apart(tmp_path: Path) -> None:
    content = [
        {"__key__": f"{folder}/0", "png": picture(n), "cls": n}
        for n, folder in enumerate(["a.b", "c"])
    ]
    write_tar(tmp_path / "in.tar", content)
    assert values(tmp_path / "out", convert(tmp_path / "in.tar", tmp_path / "out")) == {0: 0, 1: 1}
    assert split_name("a.b/cat.seg.PNG") == ("a.b/cat", "seg.png")


def test_members_of_a_sample_need_not_lie_together_and_the_last_of_a_name_wins(
    tmp_path: Path,
) -> None:
    members = [("0.png", picture(1)), ("1.png", picture(2)), ("0.cls", b"1"), ("1.cls", b"0")]
    members += [("./0.png", picture(3)), ("._0.png", b"x"), ("__MACOSX/1.png", b"x")]
    with tarfile.open(tmp_path / "in.tar", "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    assert values(tmp_path / "out", convert(tmp_path / "in.tar", tmp_path / "out")) == {3: 1, 2: 0}


def test_captions_are_no_labels_and_the_folders_of_tars_without_labels_are_classes(
    tmp_path: Path,
) -> None:
    for number in range(2):
        write_tar(tmp_path / f"in/{number:05d}.tar", samples("a cat", "a dog", field="txt"))
    (tmp_path / "in/00000.parquet").write_bytes(b"PAR1")
    index = convert(tmp_path / "in", tmp_path / "out")
    assert counts(index) == {"images": 4}
    content = [{"__key__": f"{f}/{n}", "png": picture(n), "txt": "x"} for f in "ab" for n in (0, 1)]
    write_tar(tmp_path / "folders.tar", content)
    assert counts(convert(tmp_path / "folders.tar", tmp_path / "out2")) == {"a": 2, "b": 2}


def test_class_tars_without_labels_are_classes_still(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        with tarfile.open(tmp_path / f"{name}.tar", "w") as tar:
            for n in range(2):
                info = tarfile.TarInfo(f"{n}.v2.png")  # a key would end at the first dot
                info.size = len(picture(n))
                tar.addfile(info, io.BytesIO(picture(n)))
    assert counts(convert(tmp_path, tmp_path.parent / f"{tmp_path.name}-out")) == {
        "cat": 2,
        "dog": 2,
    }


def test_our_own_shards_without_their_index(tmp_path: Path, shard_set: Path) -> None:
    (shard_set / "index.json").unlink()
    index = convert(shard_set, tmp_path / "out")
    assert counts(index) == {"0": 7, "1": 5}  # cats and dogs, whose names are lost
    assert values(tmp_path / "out", index) == {n: int(n >= 7) for n in range(12)}


def test_our_own_raw_shards_without_their_index(tmp_path: Path, shard_set: Path) -> None:
    raw = convert(shard_set, tmp_path / "raw", record="raw", images_per_shard=5)
    (tmp_path / "raw/index.json").unlink()
    index = convert(tmp_path / "raw", tmp_path / "out", record="raw")
    assert counts(index) == {"0": 7, "1": 5}
    assert values(tmp_path / "out", index) == {n: int(n >= 7) for n in range(12)}
    assert index.source["content_sha256"] == raw.content_sha256


@pytest.mark.parametrize(
    ("content", "options", "message"),
    [
        (samples(0, 1) + samples("x", field="txt", first=2), {}, r"sample 0002 has no KEY\.cls"),
        (samples(b"1", b"cat"), {}, "class numbers and names do not go together"),
        (samples(b"-1"), {"label_field": ".txt"}, r"no sample .* has a KEY\.txt"),
        (samples({"label": 1}, field="json"), {}, "has a field label .* --label-field label"),
        (samples({"a": 1}, field="json"), {"label_field": "b"}, "no field b: its fields are a"),
        (samples({"a": [1]}, field="json"), {"label_field": "a"}, "neither a whole number nor"),
        (samples({"a": True}, field="json"), {"label_field": "a"}, "neither a whole number nor"),
        (samples(b"a\nb"), {}, "is not a label"),
        (samples(b"\xff"), {}, "is not a text"),
        (samples(b"x" * 2000), {}, "is not a label"),
        (samples(b"x" * (2 << 20)), {}, "too long for a label"),
        ([{"__key__": "0", "cls": 1, "x.json": b"{}"}], {"image_key": "a.jpg"}, "no images in"),
    ],
)
def test_what_is_refused_in_one_line(
    tmp_path: Path, content: list[Sample], options: dict[str, str], message: str
) -> None:
    write_tar(tmp_path / "in.tar", content)
    with pytest.raises(DataError, match=message) as caught:
        convert(tmp_path / "in.tar", tmp_path / "out", **options)
    assert "in.tar" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_options_of_webdataset_are_refused_elsewhere(tmp_path: Path, shard_set: Path) -> None:
    with pytest.raises(DataError, match="--label-field is for WebDataset's tars"):
        convert(shard_set, tmp_path / "out", label_field="x")


def test_npy_and_json_of_a_sample_are_passed_over(tmp_path: Path) -> None:
    content = [dict(s, **{"a.npy": np.zeros(3), "json": json.dumps({})}) for s in samples(1, 0)]
    write_tar(tmp_path / "in.tar", content)
    assert counts(convert(tmp_path / "in.tar", tmp_path / "out")) == {"0": 1, "1": 1}
