"""A set exists whole or not at all: kills, write errors, older sets, `--force`."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import fasttrain_data
from fasttrain_data import DataError, convert, load_index, verify

PACKAGES = str(Path(fasttrain_data.__file__).parents[1])
# One image a shard makes the run long, with many syncs, so that a signal meets it at work.
SLOW = ["convert", "digits", "--images-per-shard", "1"]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fasttrain_data", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": PACKAGES},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigkill_leaves_nothing_and_the_same_command_then_succeeds(tmp_path: Path) -> None:
    out = tmp_path / "set"
    process = start(*SLOW, out)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob(".set.partial-*/shard-00002*.tar")):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 1  # the hidden folder of the dead run
    convert("digits", out)
    assert list(tmp_path.iterdir()) == [out]
    assert verify(out).images == 1797


def test_a_living_run_is_not_cleaned_away(tmp_path: Path, image_folder: Callable) -> None:
    from fasttrain_data.writer import ShardSetWriter

    with ShardSetWriter(tmp_path / "set", resolution=6, channels=1) as writer:
        convert(image_folder(a=2), tmp_path / "set")
        assert writer.folder.exists()
    assert not writer.folder.exists()


def test_a_failing_disk_is_one_line_and_leaves_nothing(tmp_path: Path) -> None:
    # A limit on file size fails a write in the middle, as a full disk does.
    command = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)); "
        "from fasttrain_data.cli import main; main()"
    )
    done = subprocess.run(
        [sys.executable, "-c", command, "convert", "digits", str(tmp_path / "set")],
        env={**os.environ, "PYTHONPATH": PACKAGES},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == f"fasttrain-data: cannot write {tmp_path / 'set'}: File too large\n"
    assert list(tmp_path.iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 100_000


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, image_folder: Callable) -> None:
    root = image_folder(a=2)
    (tmp_path / "file").write_text("mine")
    with pytest.raises(DataError, match=r"cannot write .*file/set: (Not a directory|File exists)"):
        convert(root, tmp_path / "file/set")
    with pytest.raises(DataError, match="file exists and is not a folder"):
        convert(root, tmp_path / "file")
    assert (tmp_path / "file").read_text() == "mine"


def test_another_set_is_replaced_by_force_only(tmp_path: Path, image_folder: Callable) -> None:
    root, out = image_folder(a=6), tmp_path / "set"
    first = convert(root, out)
    with pytest.raises(DataError, match=r"set holds shards of another source .*--force"):
        convert(root, out, seed=5)
    assert load_index(out) == first
    second = convert(root, out, seed=5, force=True)
    assert second.content_sha256 != first.content_sha256
    assert verify(out) == second
    assert sorted(p.name for p in tmp_path.iterdir()) == ["photos", "set"]


def test_a_changed_source_is_noticed(tmp_path: Path, image_folder: Callable) -> None:
    root, out = image_folder(a=3), tmp_path / "set"
    convert(root, out)
    (root / "a/00.png").unlink()
    with pytest.raises(DataError, match="another source"):
        convert(root, out)


def test_a_folder_of_other_files_is_never_touched(tmp_path: Path, image_folder: Callable) -> None:
    root, out = image_folder(a=3), tmp_path / "set"
    convert(root, out)
    (out / "thesis.tex").write_text("mine")
    for force in (False, True):
        with pytest.raises(DataError, match="set exists and is not a shard set"):
            convert(root, out, seed=1, force=force)
    assert (out / "thesis.tex").read_text() == "mine"


def test_a_damaged_existing_set_is_not_taken_for_done(
    tmp_path: Path, image_folder: Callable
) -> None:
    root, out = image_folder(a=3), tmp_path / "set"
    convert(root, out)
    (out / "shard-000000.tar").unlink()
    with pytest.raises(DataError, match=r"missing shard .*shard-000000\.tar.*--force"):
        convert(root, out)
    convert(root, out, force=True)
    assert verify(out).images == 3


def test_an_empty_folder_is_filled_and_parents_are_made(
    tmp_path: Path, image_folder: Callable
) -> None:
    root = image_folder(a=3)
    (tmp_path / "set").mkdir()
    convert(root, tmp_path / "set")
    convert(root, tmp_path / "deep/er/set")
    assert verify(tmp_path / "set") == verify(tmp_path / "deep/er/set")
