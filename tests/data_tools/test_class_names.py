"""Names for classes that a source only numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import CliRunner

from fasttrain_data import DataError, convert, load_index
from fasttrain_data.class_names import read_names
from fasttrain_data.cli import app


def names(path: Path) -> list[str]:
    return [info.name for info in load_index(path).classes]


def test_names_come_from_a_list_or_a_file(tmp_path: Path, image_folder: Callable) -> None:
    root = image_folder(one=3, two=2)
    (tmp_path / "names.txt").write_text("House cat\n\n Dog, any \n", encoding="utf-8")
    for number, given in enumerate(("House cat, Dog", str(tmp_path / "names.txt"))):
        out = tmp_path / f"set{number}"
        command = ["convert", str(root), str(out), "--class-names", given]
        assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    assert names(tmp_path / "set0") == ["House cat", "Dog"]
    assert names(tmp_path / "set1") == ["House cat", "Dog, any"]


def test_a_set_under_other_names_is_another_set(tmp_path: Path, image_folder: Callable) -> None:
    root = image_folder(one=3, two=2)
    first = convert(root, tmp_path / "set", class_names=["a", "b"])
    assert convert(root, tmp_path / "set", class_names=["a", "b"]) == first
    with pytest.raises(DataError, match="other options"):
        convert(root, tmp_path / "set")
    assert convert(root, tmp_path / "set", force=True).content_sha256 == first.content_sha256


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["a"], "--class-names has 1 names, the source has 2 classes"),
        (["a", "a"], "--class-names has 'a' twice"),
        (["a", ""], "'' cannot be a name"),
        (["one", "two", ""], "'' cannot be a name"),
        (["a", "b\nc"], "cannot be a name"),
    ],
)
def test_names_that_do_not_fit_are_refused(
    given: list[str], message: str, tmp_path: Path, image_folder: Callable
) -> None:
    with pytest.raises(DataError, match=message):
        convert(image_folder(one=3, two=2), tmp_path / "set", class_names=given)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("given", ["nmaes.txt", "lists/names"])
def test_a_file_that_is_not_there_is_not_a_name(given: str) -> None:
    with pytest.raises(DataError, match=f"--class-names {given}: neither a file"):
        read_names(given)


def test_a_mark_of_the_byte_order_is_no_part_of_a_name(tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("cat\r\ndog\r\n", encoding="utf-8-sig")
    assert read_names(str(tmp_path / "names.txt")) == ["cat", "dog"]


def test_a_file_that_is_no_text_is_named(tmp_path: Path) -> None:
    (tmp_path / "names").write_bytes(b"\xff\xfe")
    with pytest.raises(DataError, match="names cannot be read as a text file"):
        read_names(str(tmp_path / "names"))
    assert read_names("x" * 5000 + ",b") == ["x" * 5000, "b"]
