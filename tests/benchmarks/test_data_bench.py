"""The streams that training reads, beside the readers of `fasttrain-data bench`."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import data_bench
from benchmarks.data_page import data_bench_part, data_waiting_part
from benchmarks.data_waiting import waiting_of_step
from fasttrain_data import bench, convert

MACHINE = {"machine": {"cpu": "C", "cores": 2}, "note": "Noted."}


def test_streams_stand_beside_the_readers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_bench, "IMAGES", 128)
    monkeypatch.setattr(bench, "REPEATS", 1)
    convert("digits", tmp_path / "digits")
    found = data_bench.measured(tmp_path / "digits")
    assert (found["size"], found["images"]) == ("8x8 grey", 128)
    names = [(row["reader"], row["storage"]) for row in found["rows"]]
    assert names[:3] == [("fasttrain_data", record) for record in ("png", "webp", "raw")]
    assert names[-5:-2] == [("ImageStream", record) for record in ("png", "webp", "raw")]

    page = data_bench_part({**MACHINE, "batch": 64, "repeats": 1, "sets": [found]})
    assert "128 images of 8x8 grey, batches of 64, one core of C" in page
    rate = found["rows"][-1]["images_per_second"]
    assert f"| ImageStream, with its start | raw | {rate:,.0f} | " in page


def test_waiting_is_a_share_of_an_iteration(tmp_path: Path) -> None:
    convert("digits", tmp_path / "digits")
    waited, worked = waiting_of_step(tmp_path / "digits", 0.02, 0, batch=16, batches=5)
    assert 0 < worked <= 1.1 * waited < 1  # read when asked: that is work
    run = {"name": "a run", "workers": 2, "images_per_second": 7.2}
    run |= {"waiting": 0.021, "waiting_after_first_report": 0.003}
    step = {"record": "png", "workers": 0, "shares": {"0.02": [waited, worked]}}
    page = data_waiting_part({**MACHINE, "batch": 16, "runs": [run], "steps": [step]})
    assert "| a run | 2 | 7 | 2.1% | 0.3% |" in page
    assert "20 ms (800 images/s)" in page
    assert f"| png | 0 | {waited:.1%} ({worked:.1%}) |" in page
