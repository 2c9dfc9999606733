"""Classes by name: what archives and tables call them, and the same numbers in every split."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest

from fasttrain_data import DataError, convert, load_index, run_conversion, split
from fasttrain_data.class_names import read_names
from fasttrain_data.sources import open_source
from tests.data_tools.conftest import write_image
from tests.data_tools.sources import content, png

GREY = np.zeros((4, 4), np.uint8)


@pytest.mark.parametrize("kind", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_long_and_foreign_names_in_tars(tmp_path: Path, kind: int) -> None:
    names = ["ä/1.png", "ö/1.png", f"{'n' * 120}/1.png", f"{'n' * 120}/{'m' * 150}.png"]
    with tarfile.open(tmp_path / "x.tar", "w", format=kind) as tar:
        for value, name in enumerate(names):
            data = png(GREY + value)
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    convert(tmp_path / "x.tar", tmp_path / "set")
    expected = [(name.partition("/")[0], bytes([v]) * 16) for v, name in enumerate(names)]
    assert content(tmp_path / "set") == sorted(expected)


@pytest.mark.parametrize("size", [1 << 16, (1 << 16) + 1])
def test_an_extended_header_is_bounded(tmp_path: Path, size: int) -> None:
    member = tarfile.TarInfo("ahead")
    member.type, member.size = tarfile.XHDTYPE, size
    data = member.tobuf(tarfile.USTAR_FORMAT) + b"9" * size + bytes(-size % 512)
    image = tarfile.TarInfo("a/1.png")
    image.size = len(png(GREY))
    data += image.tobuf(tarfile.USTAR_FORMAT) + png(GREY)
    (tmp_path / "x.tar").write_bytes(data + bytes(2048))
    if size > 1 << 16:
        with pytest.raises(DataError, match="an extended header of 65537 bytes"):
            open_source(tmp_path / "x.tar")
    else:
        assert open_source(tmp_path / "x.tar").member(0) == "a/1.png"


def write_zip(path: Path, names: list[str]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for value, name in enumerate(names):
            archive.writestr(name, png(GREY + value))
    return path


def test_a_folder_around_a_whole_archive_is_no_class(tmp_path: Path) -> None:
    source = open_source(write_zip(tmp_path / "x.zip", ["photos/b/1.png", "photos/a/deep/2.png"]))
    assert source.classes == ["a", "b"]
    assert [source.member(item) for item in range(2)] == ["photos/a/deep/2.png", "photos/b/1.png"]
    assert list(source.labels) == [0, 1]
    flat = open_source(write_zip(tmp_path / "y.zip", ["photos/1.png", "photos/2.png"]))
    assert flat.classes == ["photos"]


def test_a_changed_member_of_equal_size_is_noticed(tmp_path: Path) -> None:
    first = open_source(write_zip(tmp_path / "x.zip", ["a/1.png"])).identity
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        data = bytearray(png(GREY))
        data[-1] ^= 1
        archive.writestr("a/1.png", bytes(data))
    assert open_source(tmp_path / "x.zip").identity != first


def test_files_passed_over_are_counted(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    root = image_folder(a=2)
    (root / "b").mkdir()
    for name in ("b/1.psd", "b/2.PSD", "a/notes.txt", "README", ".hidden", "dataset.tmp"):
        (root / name).write_bytes(b"x")
    done = run_conversion(root, tmp_path / "set")
    assert done.passed_over == {".psd": 2, ".txt": 1, "README": 1, ".tmp": 1}
    assert open_source(write_zip(tmp_path / "x.zip", ["a/1.png", "a/2.heic"])).passed_over == {
        ".heic": 1
    }


def test_a_split_is_numbered_as_another_set(
    tmp_path: Path, image_folder: Callable[..., Path]
) -> None:
    convert(image_folder(a=1, b=1, c=1), tmp_path / "train")
    write_image(tmp_path / "test/c/1.png", 7)
    write_image(tmp_path / "test/a/1.png", 9)
    names = read_names(str(tmp_path / "train"))
    index = convert(tmp_path / "test", tmp_path / "test-set", class_names=names)
    assert [(info.name, info.images) for info in index.classes] == [("a", 1), ("b", 0), ("c", 1)]
    found = [(name, pixels[0]) for name, pixels in content(tmp_path / "test-set")]
    assert found == [("a", 9), ("c", 7)]


def test_a_source_without_splits_says_so(tmp_path: Path, image_folder: Callable[..., Path]) -> None:
    with pytest.raises(DataError, match=r"--split is test: .*photos has no splits"):
        convert(image_folder(a=1), tmp_path / "set", split="test")


def write_table(path: Path, **columns: object) -> Path:
    pyarrow.parquet.write_table(pyarrow.table(columns), path)
    return path


def test_labels_of_tables_may_be_texts(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    for number, names in enumerate((["dog", "cat"], ["eel", "cat"])):
        images = [png(GREY + 2 * number + row) for row in range(2)]
        write_table(tmp_path / f"tables/{number}.parquet", image=images, label=names)
    convert(tmp_path / "tables", tmp_path / "set")
    assert [info.name for info in load_index(tmp_path / "set").classes] == ["cat", "dog", "eel"]
    found = [(name, pixels[0]) for name, pixels in content(tmp_path / "set")]
    assert found == [("cat", 1), ("cat", 3), ("dog", 0), ("eel", 2)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [([0.5, 1.0], "no class numbers or names"), (["a", None], "no class numbers or names")],
)
def test_labels_that_are_neither_numbers_nor_texts(
    tmp_path: Path, labels: list[object], message: str
) -> None:
    table = write_table(tmp_path / "x.parquet", image=[png(GREY)] * 2, label=labels)
    with pytest.raises(DataError, match=message):
        open_source(table)


def test_class_names_that_occur_twice_are_told_apart(tmp_path: Path) -> None:
    names = '["crane", "ox", "crane"]'
    metadata = f'{{"info": {{"features": {{"label": {{"names": {names}}}}}}}}}'
    table = pyarrow.table({"image": [png(GREY)] * 3, "label": [0, 1, 2]})
    table = table.replace_schema_metadata({"huggingface": metadata})
    pyarrow.parquet.write_table(table, tmp_path / "x.parquet")
    assert open_source(tmp_path / "x.parquet").classes == ["crane", "ox", "crane (2)"]


def test_copies_of_an_image_stay_in_one_part(tmp_path: Path) -> None:
    pixels = [png(GREY + value) for value in range(20)] * 2
    table = write_table(tmp_path / "x.parquet", image=pixels, label=[0] * 40)
    convert(table, tmp_path / "set", images_per_shard=9)
    held, rest = split(tmp_path / "set", tmp_path / "held", tmp_path / "rest", share=0.3)
    assert (held.images, rest.images) == (12, 28)
    parts = [{pixels for _, pixels in content(tmp_path / name)} for name in ("held", "rest")]
    assert [len(part) for part in parts] == [6, 14]
    assert not parts[0] & parts[1]
