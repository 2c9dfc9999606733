"""Tables of labels as spreadsheets, pandas and people write them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from fasttrain_data import DataError, run_conversion
from fasttrain_data.sources import Source, open_source
from fasttrain_data.survey import look_at
from tests.data_tools.conftest import write_image
from tests.data_tools.layouts.packing import picture


def folder(root: Path, table: str, *, count: int = 4, name: str = "metadata.csv") -> Path:
    for number in range(count):
        write_image(root / f"{number}.png", number)
    (root / name).write_text(table)
    return root


def named(source: Source) -> list[str]:
    return [source.classes[label] for label in source.labels]


ROWS = "0.png,{}\n1.png,{}\n2.png,{}\n3.png,{}\n"
CELLS: dict[str, tuple[str, list[str]]] = {
    "blanks after commas": (
        "file_name, label\n" + ROWS.format(" cat", ' "dog"', " cat ", "dog"),
        ["cat", "dog", "cat", "dog"],
    ),
    "whole numbers of pandas": (
        "file_name,label\n" + ROWS.format("10.0", "2.0", "0.0", "2.0"),
        ["10", "2", "0", "2"],
    ),
    "fractions": (
        "file_name,label\n" + ROWS.format("1.5", "2.0", "1.5", "2.0"),
        ["1.5", "2.0", "1.5", "2.0"],
    ),
    "semicolons, marks and Windows' lines": (
        "\ufefffile_name;label\r\n" + ROWS.replace(",", ";").replace("\n", "\r\n").format(*"abab"),
        ["a", "b", "a", "b"],
    ),
}


@pytest.mark.parametrize("name", CELLS)
def test_cells_of_a_csv(name: str, tmp_path: Path) -> None:
    table, labels = CELLS[name]
    assert named(open_source(folder(tmp_path, table))) == labels


def test_numbers_and_truths_of_json_lines(tmp_path: Path) -> None:
    for values, labels in (
        ([0.0, 1.0, 2.0, 1.0], ["0", "1", "2", "1"]),
        ([True, False, True, True], ["true", "false", "true", "true"]),
    ):
        rows = ({"file_name": f"{n}.png", "label": value} for n, value in enumerate(values))
        table = "".join(json.dumps(row) + "\n" for row in rows)
        assert named(open_source(folder(tmp_path, table, name="metadata.jsonl"))) == labels


def test_whole_floats_of_a_parquet_table(tmp_path: Path) -> None:
    images = [picture(1) for _ in range(3)]
    table = pyarrow.table({"image": images, "label": [2.0, 0.0, np.nan]})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet", unlabelled="skip")
    assert named(source) == ["2", "0"]
    assert len(source.unlabelled) == 1


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("metadata.csv", "file_name,label\n" + ROWS.format("a", "", "b", "a")),
        (
            "metadata.jsonl",
            "".join(
                json.dumps({"file_name": f"{n}.png", "label": label}) + "\n"
                for n, label in enumerate(["a", None, "b", "a"])
            ),
        ),
    ],
)
def test_an_empty_cell_is_no_label(name: str, table: str, tmp_path: Path) -> None:
    root = folder(tmp_path, table, name=name)
    with pytest.raises(DataError, match=r"name 1 of 4 images, 1\.png for one.*--unlabelled skip"):
        open_source(root)
    assert named(open_source(root, unlabelled="skip")) == ["a", "b", "a"]


def test_a_column_without_labels_is_said(tmp_path: Path) -> None:
    source = open_source(folder(tmp_path, "file_name,label\n" + ROWS.format("", "", "", "")))
    assert source.notes == [f"{tmp_path}/metadata.csv has no label in its column label"]


def test_a_table_in_another_encoding(tmp_path: Path) -> None:
    root = folder(tmp_path, "")
    (root / "metadata.csv").write_bytes("file_name;label\n0.png;café\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"is not a text in UTF-8: save it so \(of Excel's"):
        open_source(root)


def test_a_table_that_is_not_read_is_named(tmp_path: Path) -> None:
    root = folder(tmp_path / "in", "file,label\n" + ROWS.format(*"abab"), name="labels.csv")
    source = open_source(root)
    assert source.notes == [
        f"all images are one class: if {root}/labels.csv has their labels, use --labels "
        f"{root}/labels.csv"
    ]
    assert named(open_source(root, labels=root / "labels.csv")) == ["a", "b", "a", "b"]


def test_a_class_for_each_image_is_pointed_out(tmp_path: Path) -> None:
    table = "file_name,label\n" + "".join(f"{n}.png,id {n}\n" for n in range(16))
    done = run_conversion(folder(tmp_path / "in", table, count=16), tmp_path / "set")
    assert "no two images have the same class: are the labels ids, or names of files?" in done.notes


def test_jfif_is_jpeg(tmp_path: Path) -> None:
    write_image(tmp_path / "in/a.jpg", 3).rename(tmp_path / "in/a.JFIF")
    assert run_conversion(tmp_path / "in", tmp_path / "set").index.images == 1


NOTHING: dict[str, tuple[Callable[[Path], object], str]] = {
    "IMG_1": (lambda path: path.write_bytes(picture(1)), "2 without an ending"),
    "a.npy": (lambda path: np.save(path, np.zeros(2)), "2 .npy: NumPy arrays are not read, write"),
    "a.zip": (lambda path: path.write_bytes(b"PK"), "2 .zip: name one of these files"),
    "a.tar.gz": (lambda path: path.write_bytes(b""), "2 .gz: unpack them"),
}


@pytest.mark.parametrize("name", NOTHING)
def test_what_lies_where_no_images_are(name: str, tmp_path: Path) -> None:
    write, says = NOTHING[name]
    (tmp_path / "in/sub").mkdir(parents=True)
    for number in (1, 2):
        write(tmp_path / f"in/sub/{number}{name}")
    with pytest.raises(DataError, match=f"and there are {says}"):
        open_source(tmp_path / "in")


def test_why_no_image_can_be_read(tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", 1)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/b.png").symlink_to(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"no readable images in .*: b\.png: symbolic link out of"):
        look_at(tmp_path / "in")


def test_a_folder_around_the_classes_is_pointed_out(tmp_path: Path) -> None:
    for name in ("photos/cat/1.png", "photos/dog/1.png"):
        write_image(tmp_path / name, 1)
    source = open_source(tmp_path)
    assert source.classes == ["photos"]
    assert source.notes == [
        "all images are one class, because all are in the folder photos: if the folders in it "
        f"(cat, dog) are the classes, name {tmp_path}/photos"
    ]
    assert open_source(tmp_path / "photos").classes == ["cat", "dog"]
    assert not open_source(tmp_path / "photos").notes


def test_a_url_of_images_is_said_to_be_one() -> None:
    with pytest.raises(DataError, match=r"^https://example.org/x.zip is a URL: download it"):
        open_source("https://example.org/x.zip")


def test_the_index_of_pandas_is_no_column(tmp_path: Path) -> None:
    table = ",file_name,label\n" + "".join(f"{n},{n}.png,{k}\n" for n, k in enumerate("abab"))
    source = open_source(folder(tmp_path, table))
    assert (named(source), source.notes) == (["a", "b", "a", "b"], [])


def test_a_table_of_other_columns_is_taken_when_asked_for(tmp_path: Path) -> None:
    root = folder(tmp_path, "isic_id,diagnosis\n" + ROWS.replace(".png", "").format(*"abab"))
    with pytest.raises(DataError, match=rf"take its labels with --labels {root}/metadata.csv; or"):
        open_source(root)
    source = open_source(root, labels=root / "metadata.csv", label_column="diagnosis")
    assert named(source) == ["a", "b", "a", "b"]


def test_another_programs_dataset_json_hides_no_classes(tmp_path: Path) -> None:
    for name in ("cat/1.png", "dog/1.png"):
        write_image(tmp_path / name, 1)
    (tmp_path / "dataset.json").write_text('{"title": "Pets"}')
    source = open_source(tmp_path)
    assert source.classes == ["cat", "dog"]
    assert source.notes == [f'{tmp_path}/dataset.json has no "labels": it is not read']
    (tmp_path / "dataset.json").write_text('{"labels": null}')  # EDM's, without classes
    assert open_source(tmp_path).classes == ["images"]
