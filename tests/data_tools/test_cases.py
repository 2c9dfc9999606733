"""Sets as other people's tools make them, which once came out with wrong labels or not at all:
small inputs in `cases/`, and the kinds that they stand for. Every test looks at values."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from fasttrain_data import DataError, convert, run_conversion
from fasttrain_data.sources import open_source
from tests.data_tools.conftest import write_image
from tests.data_tools.sources import content, png

CASES = Path(__file__).parent / "cases"
GREY = np.zeros((4, 4), np.uint8)


def counts(source: Path, out: Path, **options: Any) -> dict[str, int]:
    """Images by class."""
    return {info.name: info.images for info in convert(source, out, **options).classes}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("backslash.zip", {"cat": 1, "dog": 1}),
        ("hidden.zip", {"cat": 1, "dog": 1}),
        ("inner.zip", {"0": 2, "1": 2}),
        ("parquet-target", {"p": 2, "q": 2}),
    ],
)
def test_cases_with_labels(name: str, expected: dict[str, int], tmp_path: Path) -> None:
    assert counts(CASES / name, tmp_path / "set") == expected


def test_a_hidden_folder_is_hidden_in_an_archive_and_unpacked(tmp_path: Path) -> None:
    zipfile.ZipFile(CASES / "hidden.zip").extractall(tmp_path / "in")
    packed = convert(CASES / "hidden.zip", tmp_path / "packed")
    unpacked = convert(tmp_path / "in/photos", tmp_path / "unpacked")
    assert packed.content_sha256 == unpacked.content_sha256


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("parquet-traceback", ("part-2.parquet", "part-0.parquet", "texts and numbers")),
        ("parquet-mix-a", ("p-1.parquet", "p-0.parquet", "texts and numbers")),
        ("parquet-mix-c", ("p-1.parquet", "p-0.parquet", "[dog, cat] and [cat, dog]")),
        ("partial.zip", ("dataset.json", "2 of 4 images", "--unlabelled skip")),
    ],
)
def test_cases_that_are_refused(name: str, parts: Sequence[str], tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        convert(CASES / name, tmp_path / "set")
    assert all(part in str(caught.value) for part in parts), caught.value
    assert not list(tmp_path.iterdir())


def test_images_without_a_label_are_left_out_when_asked_for(tmp_path: Path) -> None:
    done = run_conversion(CASES / "partial.zip", tmp_path / "set", options(unlabelled="skip"))
    assert [(info.name, info.images) for info in done.index.classes] == [("0", 0), ("1", 2)]
    reason = "no label in dataset.json"
    assert done.bad_files == tuple((f"00000/img0000000{n}.png", reason) for n in (2, 3))
    assert done.index.skipped == {reason: 2}
    assert (tmp_path / "set/skipped.jsonl").read_text().count(reason) == 2


def options(**chosen: Any) -> Any:
    from fasttrain_data import Options

    return Options(**chosen)


def test_numbers_of_classes_are_in_the_order_of_their_values(tmp_path: Path) -> None:
    for number in (0, 2, 10, 9):
        write_image(tmp_path / f"in/{number}/x.png", number)
    source = open_source(tmp_path / "in")
    assert source.classes == ["0", "2", "9", "10"]
    assert [source.read(n, wanted())[0, 0, 0] for n in np.argsort(source.labels)] == [0, 2, 9, 10]
    write_image(tmp_path / "in/b/x.png", 1)
    assert open_source(tmp_path / "in").classes == ["0", "2", "9", "10", "b"]


def wanted() -> Any:
    from fasttrain_data.images import Wanted

    return Wanted(channels=1)


def write_zip(path: Path, names: Sequence[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for value, name in enumerate(names):
            archive.writestr(name, png(GREY + value))
    return path


def write_tar(path: Path, names: Sequence[str]) -> Path:
    with tarfile.open(path, "w") as archive:
        for value, name in enumerate(names):
            data = png(GREY + value)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def write_folder(path: Path, names: Sequence[str]) -> Path:
    for value, name in enumerate(names):
        file = path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(GREY + value))
    return path


CONTAINERS = {"zip": write_zip, "tar": write_tar, "folder": write_folder}
Container = Callable[[Path, Sequence[str]], Path]


@pytest.fixture(params=CONTAINERS)
def container(request: pytest.FixtureRequest) -> Container:
    write = CONTAINERS[request.param]
    return lambda path, names: write(path.with_name(f"{path.name}.{request.param}"), names)


def test_hidden_parts_of_a_path_in_every_container(container: Container, tmp_path: Path) -> None:
    names = [
        "cat/1.png",
        "cat/.thumbnails/1.png",
        ".git/2.png",
        "__MACOSX/cat/._1.png",
        "dog/3.png",
    ]
    names += ["__MACOSX/cat/9.png", "dog/.x.png"]
    convert(container(tmp_path / "x", names), tmp_path / "set")
    found = [(name, pixels[0]) for name, pixels in content(tmp_path / "set")]
    assert found == [("cat", 0), ("dog", 4)]


def test_backslashes_in_every_container(container: Container, tmp_path: Path) -> None:
    convert(container(tmp_path / "x", ["cat\\1.png", "dog\\a\\2.png"]), tmp_path / "set")
    found = [(name, pixels[0]) for name, pixels in content(tmp_path / "set")]
    assert found == [("cat", 0), ("dog", 1)]


def test_two_files_of_a_folder_under_one_name_are_an_error(tmp_path: Path) -> None:
    write_folder(tmp_path / "x", ["cat\\1.png", "cat/1.png"])
    with pytest.raises(DataError, match=r"two files named cat/1\.png"):
        open_source(tmp_path / "x")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize("write", [write_zip, write_tar])
def test_of_a_member_twice_the_last_one_wins(write: Container, tmp_path: Path) -> None:
    names = ["a/1.png", "a/2.png", "./a/1.png", "b/1.png", "a/1.png"]
    convert(
        write(tmp_path / "x.zip" if write is write_zip else tmp_path / "x.tar", names),
        tmp_path / "set",
    )
    found = [(name, pixels[0]) for name, pixels in content(tmp_path / "set")]
    assert found == [("a", 1), ("a", 4), ("b", 3)]


SPLITS = ["Train/cat/1.png", "Train/dog/2.png", "val/cat/3.png", "test/dog/4.png", "test/cat/5.png"]


@pytest.mark.parametrize("around", ["", "photos/"])
def test_folders_of_splits(container: Container, around: str, tmp_path: Path) -> None:
    path = container(tmp_path / "x", [around + name for name in SPLITS])
    for split, expected in (
        ("train", [("cat", 0), ("dog", 1)]),
        ("validation", [("cat", 2)]),
        ("test", [("cat", 4), ("dog", 3)]),
    ):
        convert(path, tmp_path / split, split=split)
        found = [(name, pixels[0]) for name, pixels in content(tmp_path / split)]
        assert found == expected
    with pytest.raises(DataError, match=r"--split is x: .* has the folders Train, test, val"):
        open_source(path, split="x")
    if around and path.is_dir():
        return  # a folder around others is a class, as it says in the line of `convert`
    done = run_conversion(path, tmp_path / "all")
    assert [info.name for info in done.index.classes] == ["Train", "test", "val"]
    (note,) = done.notes
    title = path.resolve()
    assert note == (
        f"warning: the folders Train, test, val of {title} became classes; one of them alone: "
        f"fasttrain-data convert {title} OUT --split Train"
    )


def test_training_is_the_split_that_is_proposed(tmp_path: Path) -> None:
    (note,) = open_source(write_tar(tmp_path / "x.tar", ["test/1.png", "train/2.png"])).notes
    assert note.endswith("--split train")


def test_a_class_named_train_among_others_is_a_class(container: Container, tmp_path: Path) -> None:
    done = run_conversion(container(tmp_path / "x", ["bus/1.png", "train/1.png"]), tmp_path / "set")
    assert [info.name for info in done.index.classes] == ["bus", "train"]
    assert done.notes == ()


def table(path: Path, labels: dict[str, Any], features: dict[str, Any] | None = None) -> Path:
    """A row for each label; images of the values 0, 1, ..."""
    import json

    rows = len(next(iter(labels.values())))
    images = [{"bytes": png(GREY + row), "path": None} for row in range(rows)]
    made = pyarrow.table({"image": images, **labels})
    if features is not None:
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        made = made.replace_schema_metadata(metadata)
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(made, path)
    return path


FINE = {"_type": "ClassLabel", "names": ["beech", "oak"]}
COARSE = {"_type": "ClassLabel", "names": ["tree"]}


def test_a_declared_column_goes_before_one_that_is_named_so(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"label": [7, 8], "species": [1, 0]}, {"species": FINE})
    done = run_conversion(path, tmp_path / "set")
    assert [(name, p[0]) for name, p in content(tmp_path / "set")] == [("beech", 1), ("oak", 0)]
    assert done.notes == (f"{path}: labels are the column species; columns not used: label",)


def test_several_columns_of_labels_are_named_and_one_is_chosen(tmp_path: Path) -> None:
    labels = {"fine": [1, 0], "coarse": [0, 0], "text": ["a", "b"]}
    path = table(tmp_path / "x.parquet", labels, {"fine": FINE, "coarse": COARSE})
    with pytest.raises(DataError, match="several columns of labels, fine, coarse: choose one with"):
        open_source(path)
    convert(path, tmp_path / "fine", label_column="fine")
    found = [(name, pixels[0]) for name, pixels in content(tmp_path / "fine")]
    assert found == [("beech", 1), ("oak", 0)]
    assert counts(path, tmp_path / "coarse", label_column="coarse") == {"tree": 2}
    assert counts(path, tmp_path / "text", label_column="text") == {"a": 1, "b": 1}
    assert counts(path, tmp_path / "none", label_column="none") == {"images": 2}
    with pytest.raises(DataError, match=r"--label-column is x: .* has fine, coarse, text"):
        open_source(path, label_column="x")


def test_a_table_without_labels_says_so(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"caption": ["a", "b"]})
    done = run_conversion(path, tmp_path / "set")
    assert [(info.name, info.images) for info in done.index.classes] == [("images", 2)]
    (note,) = done.notes
    assert "all images are one class" in note
    assert note.endswith("see --label-column: caption")


def test_rows_without_a_label(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"label": [1, -1, 0, -1]}, {"label": FINE})
    with pytest.raises(DataError, match=r"row 1 has -1; --unlabelled skip .*--label-column none"):
        open_source(path)
    done = run_conversion(path, tmp_path / "set", options(unlabelled="skip"))
    found = [(name, pixels[0]) for name, pixels in content(tmp_path / "set")]
    assert found == [("beech", 2), ("oak", 0)]
    assert done.index.skipped == {"no label in the column label": 2}
    assert [name for name, _ in done.bad_files] == ["row 1", "row 3"]
    only = table(tmp_path / "y.parquet", {"label": [-1, -1]}, {"label": FINE})
    with pytest.raises(DataError, match=r"no row of .* has a label: for one class, --label-column"):
        open_source(only, unlabelled="skip")


def test_columns_of_labels_in_one_file_only_are_refused(tmp_path: Path) -> None:
    table(tmp_path / "in/a.parquet", {"label": [0, 1]})
    table(tmp_path / "in/b.parquet", {"other": [0, 1]})
    with pytest.raises(
        DataError, match=r"b\.parquet and .*a\.parquet disagree: the column of labels"
    ):
        open_source(tmp_path / "in")


def test_whole_numbers_as_texts_are_in_the_order_of_their_values(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", {"label": ["10", "9", "0"]})
    assert open_source(path).classes == ["0", "9", "10"]


def test_a_split_that_is_not_there_is_told_from_those_that_are(tmp_path: Path) -> None:
    table(tmp_path / "in/data/test-0.parquet", {"label": [0]})
    table(tmp_path / "in/data/validation-0.parquet", {"label": [0]})
    with pytest.raises(DataError, match="of the split train: it has test, validation, see --split"):
        open_source(tmp_path / "in")
