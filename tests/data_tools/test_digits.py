"""scikit-learn's digits: exact pixels, the same bytes twice, and webdataset's reader reads them."""

from __future__ import annotations

import hashlib
import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image
from sklearn.datasets import load_digits

from fasttrain_data import Index, convert, decode_record, load_index, open_shard, read_records
from fasttrain_data.permutation import SHARD_WRITER, permutation


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("digits") / "set"
    convert("digits", out)
    return out


def read_all(folder: Path, index: Index) -> list[tuple[np.ndarray, int]]:
    found = []
    for shard in index.shards:
        with open_shard(folder, shard, check_hash=True) as file:
            for record in read_records(file, index, name=shard.name):
                found.append((decode_record(record, index, name=shard.name), record.label))
    return found


def test_index_says_what_the_digits_are(digits: Path) -> None:
    index = load_index(digits)
    assert (index.images, index.resolution, index.channels) == (1797, 8, 1)
    targets = Counter(load_digits().target.tolist())
    assert [(c.name, c.images) for c in index.classes] == [(str(d), targets[d]) for d in range(10)]
    # Balanced shards: 1797 in ceil(1797 / 128) = 15.
    assert [s.images for s in index.shards] == [120] * 12 + [119] * 3
    for shard in index.shards:
        data = (digits / shard.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (shard.bytes, shard.sha256)
    assert sorted(p.name for p in digits.iterdir()) == sorted(
        ["index.json", *(s.name for s in index.shards)]
    )
    assert list(digits.parent.iterdir()) == [digits]


def test_pixels_and_labels_are_exactly_scikit_learns(digits: Path) -> None:
    original = load_digits()
    scaled = np.rint(original.images * 255 / 16).astype(np.uint8)
    order = permutation(1797, SHARD_WRITER, 0)
    found = read_all(digits, load_index(digits))
    assert len(found) == 1797
    for (pixels, label), item in zip(found, order, strict=True):
        np.testing.assert_array_equal(pixels[..., 0], scaled[item])
        assert label == original.target[item]


def test_same_bytes_twice_and_another_seed_another_order(digits: Path, tmp_path: Path) -> None:
    again = convert("digits", tmp_path / "again")
    first = load_index(digits)
    assert (tmp_path / "again/index.json").read_bytes() == (digits / "index.json").read_bytes()
    assert again.shards == first.shards
    other = convert("digits", tmp_path / "other", seed=1)
    assert other.content_sha256 != first.content_sha256
    assert other.classes == first.classes


def test_content_hash_is_as_documented(digits: Path) -> None:
    index = load_index(digits)
    expected = hashlib.sha256(b"fasttrain-content 2 8 1\n")
    for pixels, label in read_all(digits, index):
        expected.update(np.int32(label).astype("<i4").tobytes())
        expected.update(hashlib.sha256(pixels.tobytes()).digest())
    assert index.content_sha256 == expected.hexdigest()


def test_webdatasets_own_reader_reads_the_shards(digits: Path) -> None:
    index = load_index(digits)
    urls = [str(digits / shard.name) for shard in index.shards]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    ours = read_all(digits, index)
    assert len(samples) == len(ours)
    for sample, (pixels, label) in zip(samples, ours, strict=True):
        assert int(sample["cls"]) == label
        np.testing.assert_array_equal(
            np.asarray(Image.open(io.BytesIO(sample["png"]))), pixels[..., 0]
        )


def test_already_there_is_kept(digits: Path) -> None:
    before = {p: p.stat().st_mtime_ns for p in digits.iterdir()}
    assert convert("digits", digits) == load_index(digits)
    assert {p: p.stat().st_mtime_ns for p in digits.iterdir()} == before


def test_index_is_plain_json_without_paths_or_times(digits: Path) -> None:
    text = (digits / "index.json").read_text()
    assert str(digits.parent) not in text
    source = json.loads(text)["source"]
    labels = hashlib.sha256(json.dumps([str(digit) for digit in range(10)]).encode())
    labels.update(load_digits().target.astype("<i8").tobytes())
    assert source == {"kind": "digits", "images": 1797, "labels_sha256": labels.hexdigest()}


def test_resolution_and_channels_apply(tmp_path: Path) -> None:
    index = convert("digits", tmp_path / "big", resolution=12, channels=3, images_per_shard=1000)
    (pixels, _), *_ = read_all(tmp_path / "big", index)
    item = permutation(1797, SHARD_WRITER, 0)[0]
    small = np.rint(load_digits().images[item] * 255 / 16).astype(np.uint8)
    expected = np.asarray(Image.fromarray(small).resize((12, 12), Image.Resampling.LANCZOS))
    for channel in range(3):
        np.testing.assert_array_equal(pixels[..., channel], expected)


def test_permutation_never_changes() -> None:
    # Raw PCG64 numbers are promised to be stable: these are what every machine must get.
    assert permutation(8, SHARD_WRITER, 0).tolist() == [2, 4, 7, 5, 0, 6, 3, 1]
    assert permutation(8, SHARD_WRITER, 1).tolist() == [5, 6, 3, 0, 7, 2, 1, 4]
    for size in (0, 1, 2, 513):
        assert sorted(permutation(size, 3, 5, 7).tolist()) == list(range(size))
