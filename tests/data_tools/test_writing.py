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
from fasttrain_data.writer import Staging

PACKAGES = str(Path(fasttrain_data.__file__).parents[1])
# Few images a shard make the run long, with many syncs, so that a signal meets it at work.
FEW = 3
SLOW = ["convert", "digits", "--images-per-shard", FEW]


def start(*arguments: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "fasttrain_data", *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": PACKAGES},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_sigkill_leaves_nothing_and_the_same_command_goes_on(tmp_path: Path) -> None:
    expected = convert("digits", tmp_path / "expected", images_per_shard=FEW)
    out = tmp_path / "set"
    (folder,) = killed(out, tmp_path)
    done = finished(folder)
    index = convert("digits", out, images_per_shard=FEW)
    assert index == expected
    assert verify(out).images == 1797
    assert len(done) >= 20
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done  # none made again
    assert sorted(path.name for path in tmp_path.iterdir()) == ["expected", "set"]


def test_another_conversion_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    out = tmp_path / "set"
    killed(out, tmp_path)
    convert("digits", out)
    assert list(tmp_path.iterdir()) == [out]
    assert verify(out).images == 1797


def finished(folder: Path) -> dict[str, int]:
    """Shards that have a journal, and when they were written."""
    names = [path.stem for path in folder.glob("shard-*.tar.json")]
    return {name: (folder / name).stat().st_mtime_ns for name in names}


def killed(out: Path, parent: Path) -> list[Path]:
    """The hidden folders of a conversion, on two processes, that was killed at work."""
    process = start(*SLOW, out, "--workers", 2)
    deadline = time.monotonic() + 60
    while len(list(parent.glob(".set.partial-*/shard-*.tar.json"))) < 20:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    (children,) = Path(f"/proc/{process.pid}/task/{process.pid}").glob("children")
    workers = children.read_text().split()
    assert len(workers) == 2
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    process.communicate()
    while any(Path(f"/proc/{worker}").exists() for worker in workers):  # they go with it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert not out.exists()
    return list(parent.glob(".set.partial-*"))


def test_a_killed_worker_is_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    out = tmp_path / "set"
    process = start(*SLOW, out, "--workers", 2)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob(".set.partial-*/shard-*.tar.json"))) < 20:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    os.kill(int(children[0]), signal.SIGKILL)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 2
    assert said.startswith("fasttrain-data: a worker process was killed")
    assert said.count("\n") == 1
    (folder,) = tmp_path.iterdir()
    done = finished(folder)
    assert len(done) >= 20
    assert convert("digits", out, images_per_shard=FEW).images == 1797
    assert {name: (out / name).stat().st_mtime_ns for name in done} == done


def test_a_living_run_is_not_cleaned_away(tmp_path: Path, image_folder: Callable) -> None:
    with Staging(tmp_path / "set", "another") as staging:
        convert(image_folder(a=2), tmp_path / "set")
        assert staging.folder.exists()
    assert not staging.folder.exists()


def test_the_same_conversion_twice_at_once_is_refused(
    tmp_path: Path, image_folder: Callable
) -> None:
    again = Staging(tmp_path / "set", "same")
    refused = pytest.raises(DataError, match="set is being made by another process")
    with Staging(tmp_path / "set", "same"), refused:
        again.__enter__()


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
