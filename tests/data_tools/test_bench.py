"""`fasttrain-data bench`: every reader reads all of the same images."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from fasttrain_data import DataError, bench, convert


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "digits"
    convert("digits", path)
    return path


READERS = [
    *(("fasttrain_data", record) for record in ("png", "webp", "raw")),
    *(("webdataset", record) for record in ("png", "webp", "raw")),
    ("DataLoader", "zip of PNG"),
    ("DataLoader", "folder of PNG"),
]


def test_every_reader_reads_the_same_images(digits: Path, tmp_path: Path) -> None:
    found = bench.cases(digits, tmp_path, 150)
    assert [(case.reader, case.storage) for case in found] == READERS
    assert [case.read() for case in found] == [150] * len(READERS)
    size = {case.storage: case.bytes for case in found}
    assert size["folder of PNG"] < size["zip of PNG"] < size["png"]  # of headers and padding


def test_the_numbers_are_printed_and_written(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(bench, "REPEATS", 2)
    cores = os.sched_getaffinity(0)
    rows = bench.run_bench(digits, images=64, out=tmp_path / "bench.json")
    assert os.sched_getaffinity(0) == cores
    written = json.loads((tmp_path / "bench.json").read_text())["rows"]
    assert [(row["reader"], row["storage"]) for row in written] == READERS
    for row in rows:
        assert min(row.passes) <= row.images_per_second <= max(row.passes)
    printed = capsys.readouterr().out
    assert "folder of PNG" in printed
    assert "8x8" in printed


def test_too_few_images_are_refused(digits: Path) -> None:
    with pytest.raises(DataError, match="--images is 10: it must be at least 64"):
        bench.run_bench(digits, images=10, out=None)
