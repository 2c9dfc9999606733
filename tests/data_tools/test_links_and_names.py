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
