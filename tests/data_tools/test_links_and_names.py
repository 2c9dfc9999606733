"""Folders of links, and names in any script."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from fasttrain_data import DataError, convert, load_index, preview
from fasttrain_data.contact_sheet import font_for


def test_links_are_followed_where_that_is_asked_for(tmp_path: Path, image_folder: Callable) -> None:
    root, linked = image_folder(a=3, b=2), tmp_path / "linked"
    linked.mkdir()
    (linked / "cats").symlink_to(root / "a")
    (linked / "dogs").mkdir()
    (linked / "dogs/one.png").symlink_to(next((root / "b").glob("*.png")))
    (linked / "dogs/around").symlink_to(linked)  # a folder inside of itself
    with pytest.raises(DataError, match="follow it with --follow-links"):
        convert(linked, tmp_path / "set")
    index = convert(linked, tmp_path / "set", follow_links=True)
    assert {info.name: info.images for info in index.classes} == {"cats": 3, "dogs": 1}
    assert load_index(tmp_path / "set").images == 4
    with pytest.raises(DataError, match="--follow-links is for folders"):
        convert("digits", tmp_path / "other", follow_links=True)
    plain = convert(root, tmp_path / "plain")
    assert "follow_links" not in plain.options  # sets without it stay as they were


def test_folders_that_link_to_each_other_are_entered_once(
    tmp_path: Path, image_folder: Callable
) -> None:
    root = image_folder(a=1, b=1)
    (root / "a/x").symlink_to(root / "b")
    (root / "b/y").symlink_to(root / "a")
    index = convert(root, tmp_path / "set", follow_links=True)
    assert [info.images for info in index.classes] == [2, 2]


def test_a_changed_target_of_a_link_is_another_source(tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.new("L", (8, 8), 1).save(photo)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/a.png").symlink_to(photo)
    convert(tmp_path / "in", tmp_path / "set", follow_links=True)
    Image.effect_noise((8, 8), 90).save(photo)
    with pytest.raises(DataError, match="shards of another source"):
        convert(tmp_path / "in", tmp_path / "set", follow_links=True)


def test_a_set_is_written_where_a_link_leads(tmp_path: Path, image_folder: Callable) -> None:
    root = image_folder(one=3, two=2)
    (tmp_path / "large/set").mkdir(parents=True)
    (tmp_path / "set").symlink_to(tmp_path / "large/set")
    first = convert(root, tmp_path / "set")
    assert (tmp_path / "set").is_symlink()
    assert load_index(tmp_path / "large/set") == first
    other = convert(root, tmp_path / "set", seed=1, force=True)
    assert load_index(tmp_path / "large/set") == other
    assert other.options["seed"] == 1
    assert [path.name for path in (tmp_path / "large").iterdir()] == ["set"]


def test_a_set_is_not_replaced_by_what_is_made_of_it(
    tmp_path: Path, image_folder: Callable
) -> None:
    first = convert(image_folder(one=3, two=2), tmp_path / "set", record="raw")
    with pytest.raises(DataError, match="inside the folder of images"):
        convert(tmp_path / "set", tmp_path / "set", resolution=4, force=True)
    assert load_index(tmp_path / "set") == first


def test_a_name_that_no_font_can_write_is_not_drawn_as_boxes(
    tmp_path: Path, image_folder: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fasttrain_data.contact_sheet.FONT_FOLDERS", ())
    assert font_for("cats") is not None
    assert font_for("猫") is None
    root, sheets = image_folder(猫=2), []
    for number in range(2):
        convert(root, tmp_path / f"set{number}")
        preview(tmp_path / f"set{number}", tmp_path / f"{number}.png", columns=2)
        sheets.append(Image.open(tmp_path / f"{number}.png").tobytes())
        if number == 0:
            (root / "猫").rename(root / "class 0")
    assert sheets[0] == sheets[1]
