"""The streams that training reads, beside the readers of `fasttrain-data bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import data_bench
from benchmarks.data_page import data_bench_part
from fasttrain_data import bench, convert


def test_streams_stand_beside_the_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_bench, "IMAGES", 128)
    monkeypatch.setattr(bench, "REPEATS", 1)
    convert("digits", tmp_path / "digits")
    found = data_bench.measured(tmp_path / "digits")
    assert (found["size"], found["images"]) == ("8x8 grey", 128)
    names = [(row["reader"], row["storage"]) for row in found["rows"]]
    assert names[:3] == [("fasttrain_data", record) for record in ("png", "webp", "raw")]
    assert names[-5:-2] == [("ImageStream", record) for record in ("png", "webp", "raw")]

    result = {"machine": {"cpu": "C"}, "note": "Noted.", "batch": 64, "repeats": 1}
    page = data_bench_part({**result, "sets": [found]})
    assert "128 images of 8x8 grey, batches of 64, one core of C" in page
    rate = found["rows"][-1]["images_per_second"]
    assert f"| ImageStream, with its start | raw | {rate:,.0f} | " in page
