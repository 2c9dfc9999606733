"""Labels that are whole numbers: class numbers, or years and ids."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from fasttrain_data import Conversion, DataError, Options, run_conversion
from fasttrain_data.sources.numbers import classes_of
from tests.data_tools.conftest import write_image
from tests.data_tools.layouts.packing import picture
from tests.data_tools.test_webdataset import samples, write_tar

Write = Callable[[Path, list[int]], Path]
SMALL = Options(resolution=8)


def table(name: str, text: Callable[[list[tuple[str, int]]], str]) -> Write:
    def write(folder: Path, labels: list[int]) -> Path:
        rows = [(f"{number}.png", label) for number, label in enumerate(labels)]
        for number, (image, _) in enumerate(rows):
            write_image(folder / "in" / image, number)
        (folder / "in" / name).write_text(text(rows))
        return folder / "in"

    return write


def parquet(folder: Path, labels: list[int]) -> Path:
    rows = pyarrow.table({"image": [picture(1) for _ in labels], "label": labels})
    pyarrow.parquet.write_table(rows, folder / "in.parquet")
    return folder / "in.parquet"


def tar(folder: Path, labels: list[int]) -> Path:
    write_tar(folder / "in.tar", samples(*labels))
    return folder / "in.tar"


CSV = table(
    "metadata.csv", lambda rows: "file_name,label\n" + "".join(f"{n},{k}\n" for n, k in rows)
)
JSON = table(
    "metadata.jsonl",
    lambda rows: "".join(json.dumps({"file_name": n, "label": k}) + "\n" for n, k in rows),
)
KINDS: Mapping[str, Write] = {"csv": CSV, "jsonl": JSON, "parquet": parquet, "tar": tar}


def classes(done: Conversion) -> dict[str, int]:
    return {info.name: info.images for info in done.index.classes if info.images}


@pytest.mark.parametrize("kind", KINDS)
def test_ids_beyond_class_numbers_are_as_many_classes_as_occur(tmp_path: Path, kind: str) -> None:
    low, high = 1, 123_456_789
    done = run_conversion(KINDS[kind](tmp_path, [low, high, low]), tmp_path / "set", SMALL)
    assert len(done.index.classes) == 2
    assert classes(done) == {str(low): 2, str(high): 1}
    (note,) = (note for note in done.notes if "numbers" in note)
    assert note.endswith(
        f"2 numbers from {low} to {high} are labels: each of these is a class, numbered 0 to 1; "
        "give another split the same numbers with --class-names and this set"
    )


@pytest.mark.parametrize("kind", KINDS)
def test_some_classes_keep_their_numbers(tmp_path: Path, kind: str) -> None:
    done = run_conversion(KINDS[kind](tmp_path, [7, 2004]), tmp_path / "set", SMALL)
    assert len(done.index.classes) == 2005
    assert classes(done) == {"7": 1, "2004": 1}
    assert [note for note in done.notes if "numbers" in note] == [
        "2,003 of 2,005 classes have no image: labels are numbers of classes, up to the largest; "
        "write years or ids as names, such as y2004"
    ]


def test_numbers_are_kept_up_to_the_most_classes() -> None:
    names, labels, notes = classes_of({0, 499_999}, "x")
    assert (len(names), labels[499_999], notes) == (500_000, 499_999, [])
    names, labels, notes = classes_of({0, 500_000}, "x")
    assert (names, labels[500_000], len(notes)) == (["0", "500000"], 1, 1)
    with pytest.raises(DataError, match="x has 500,001 classes: there are at most 500000"):
        classes_of(range(0, 3 * 500_001, 3), "x")
