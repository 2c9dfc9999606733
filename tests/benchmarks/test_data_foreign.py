"""Readers of tars of others side by side, and what an index takes."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.data_foreign import measured, scale_row
from benchmarks.data_page import data_foreign_part, foreign_scale_part
from fasttrain_data import bench

MACHINE = {"machine": {"cpu": "C", "cores": 2}}


def test_readers_read_the_same_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "REPEATS", 1)
    found = measured("small", (80, 64), 128)
    names = ["ImageStream", "ImageStream, first epoch", "webdataset", "DataLoader"]
    assert [row["reader"] for row in found["rows"]] == names
    about = {**MACHINE, "note": "Noted.", "batch": 64, "repeats": 1, "resolution": 64}
    page = data_foreign_part({**about, "sets": [found]})
    assert f"| webdataset | tars of others | {found['rows'][2]['images_per_second']:,.0f} |" in page


def test_the_index_of_many_is_worked_out_from_the_largest(tmp_path: Path) -> None:
    row = scale_row(250, 50, tmp_path)
    assert (row["images"], row["tars"]) == (250, 5)
    assert row["records_bytes"] == 250 * (16 + 12 + 1) - 5  # keys, and a line's end between two
    later = {**row, "images": 500, "seconds": 3.0, "memory": row["memory"]}
    page = foreign_scale_part({"foreign": {**MACHINE, "rows": [row, later]}})
    assert "| 5,000,000, by these | 50,000 | " in page
    assert "| 30000 | " in page
