"""The `fasttrain-data` command: exit status, one line of error, and what it prints and draws."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fasttrain_data import DataError, preview
from fasttrain_data.cli import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fasttrain-data", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        out, err = capfd.readouterr()
        return int(caught.value.code or 0), out, err

    return call


def test_convert_verify_info(run: Run, tmp_path: Path, image_folder: Callable) -> None:
    root, out = image_folder(cats=3, dogs=2), tmp_path / "set"
    (root / "cats/broken.png").write_text("no image")
    status, printed, err = run("convert", root, out, "--max-bad", 1, "--images-per-shard", 2)
    assert status == 0
    assert f"{out}: 5 images of 6x6x1 in 2 classes (cats 3, dogs 2), 3 shards" in printed
    assert "left out: 1 (1 not an image)" in printed
    assert f"left out: {root}/cats/broken.png: not an image" in err
    status, printed, _ = run("convert", root, out, "--max-bad", 1, "--images-per-shard", 2)
    assert status == 0
    assert "already there" in printed
    status, printed, _ = run("verify", out)
    assert (status, "sound, 5 images" in printed) == (0, True)
    status, printed, _ = run("info", out)
    assert status == 0
    for text in ("6x6, 1 channels", "cats", "dogs", "folder", "left out"):
        assert text in printed


def test_mistakes_are_one_line_and_status_2(run: Run, tmp_path: Path, shard_set: Path) -> None:
    for arguments, message in (
        (("convert", tmp_path / "nowhere", tmp_path / "x"), f"no images at {tmp_path}"),
        (("convert", "digits", shard_set), "another source"),
        (("verify", tmp_path / "x"), "no shards at"),
        (("info", tmp_path / "x"), "no shards at"),
        (("preview", tmp_path / "x"), "no shards at"),
        (("preview", shard_set, "/proc/self/x.png"), "/proc/self"),
        (("preview", shard_set, tmp_path / "x.png", "--columns", 0), "at least one column"),
    ):
        status, out, err = run(*arguments)
        assert (status, out) == (2, "")
        assert message in err
        assert err.count("\n") == 1
        assert err.startswith("fasttrain-data: ")
    assert run("convert", "digits")[0] == 2  # the command line itself: typer's own message
    assert run("nonsense")[0] == 2


def test_every_problem_of_a_set_is_a_line(run: Run, shard_set: Path) -> None:
    for shard in shard_set.glob("*.tar"):
        shard.unlink()
    status, _, err = run("verify", shard_set)
    assert status == 2
    assert [f"shard-00000{n}.tar" in line for n, line in enumerate(err.splitlines())] == [True] * 3


def test_help_has_examples(run: Run) -> None:
    assert "convert" in run("--help")[1]
    assert "fasttrain-data convert digits data/digits" in run("convert", "--help")[1]


def test_preview_shows_each_class_in_its_row(shard_set: Path, tmp_path: Path) -> None:
    assert preview(shard_set, tmp_path / "out/sheet.png", columns=4) == (2, 8)
    sheet = np.asarray(Image.open(tmp_path / "out/sheet.png"))
    side = 6 * 6 + 2  # 6 pixels enlarged by 6, and the gap
    assert sheet.shape == (2 * side + 2, 120 + 4 * side, 3)
    for row, values in enumerate((range(7), range(7, 12))):  # cats, dogs
        shown = [
            int(sheet[row * side + side // 2, 120 + column * side + side // 2, 0])
            for column in range(4)
        ]
        assert len(set(shown)) == 4
        assert set(shown) <= set(values)
    with pytest.raises(DataError, match="at least one"):
        preview(shard_set, tmp_path / "x.png", columns=0)
    assert not (tmp_path / "x.png").exists()
