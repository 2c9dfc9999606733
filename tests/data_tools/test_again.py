"""The same command again, after an error, a crash or a change of the source: what is kept, and what
is noticed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fasttrain_data import DataError, Options, convert, load_index, run_conversion, verify, writer
from fasttrain_data.images import Wanted
from fasttrain_data.permutation import SHARD_WRITER, permutation
from fasttrain_data.pool import in_order
from fasttrain_data.sources import FolderSource
from tests.data_tools.conftest import write_image
from tests.data_tools.sources import content, write_idx
from tests.data_tools.test_writing import PACKAGES

SHORT = Options(images_per_shard=2)
SMALL = Options(images_per_shard=2, resolution=6, channels=1)


def staged(parent: Path) -> list[Path]:
    """Finished shards of unfinished conversions."""
    return sorted(parent.glob(".set.partial-*/shard-*.tar"))


def test_idx_files_of_equal_size_are_told_apart(tmp_path: Path, rng: np.random.Generator) -> None:
    labels = np.arange(6) % 3
    for name in ("a", "b"):
        write_idx(tmp_path / name, rng.integers(0, 256, (6, 4, 4), dtype=np.uint8), labels)
    for folder in (tmp_path / "a", tmp_path / "b"):
        folder.rename(tmp_path / "raw")  # both sets lie in a folder of that name
        if (tmp_path / "set").exists():
            with pytest.raises(DataError, match="holds shards of another source"):
                convert(tmp_path / "raw", tmp_path / "set")
        else:
            convert(tmp_path / "raw", tmp_path / "set")
        (tmp_path / "raw").rename(folder)


def test_other_labels_are_another_source(image_folder: Callable[..., Path], tmp_path: Path) -> None:
    root = image_folder(a=2, b=1)
    names = ["a/00.png", "a/01.png", "b/00.png"]
    for labels in ((0, 0, 1), (0, 1, 1)):
        table = {"labels": [list(pair) for pair in zip(names, labels, strict=True)]}
        (root / "dataset.json").write_text(json.dumps(table))
        if (tmp_path / "set").exists():
            with pytest.raises(DataError, match="holds shards of another source"):
                convert(root, tmp_path / "set")
        else:
            convert(root, tmp_path / "set")


def test_what_changed_since_a_crash_is_read_again(
    image_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = image_folder(a=6)

    def crash(self: writer.Staging, count: int, *_: object, **__: object) -> None:
        assert len(staged(tmp_path)) == count == 3
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer.Staging, "commit", crash)
        with pytest.raises(KeyboardInterrupt):
            run_conversion(root, tmp_path / "set", SHORT)
    for number in range(6):  # a rewritten file of equal size
        path = write_image(root / f"a/{number:02d}.png", 100 + number)
        os.utime(path, ns=(1, 1))
    assert len(staged(tmp_path)) == 3
    run_conversion(root, tmp_path / "set", SHORT)
    verify(tmp_path / "set")
    assert [pixels[0] for _, pixels in content(tmp_path / "set")] == list(range(100, 106))


def test_after_too_many_bad_files_the_finished_shards_are_used(
    image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = image_folder(a=12)
    (root / "a/07.png").write_bytes(b"not an image")
    options = Options(images_per_shard=2, resolution=6, channels=1)  # no header is read before
    with pytest.raises(DataError, match=r"a/07.png: not an image .*--max-bad N"):
        run_conversion(root, tmp_path / "set", options)
    before = {path.name: path.stat().st_mtime_ns for path in staged(tmp_path)}
    assert len(before) > 1
    done = run_conversion(root, tmp_path / "set", options, max_bad=1)
    assert done.index.images == 11
    after = {name: (tmp_path / "set" / name).stat().st_mtime_ns for name in before}
    assert after == before
    assert not list(tmp_path.glob(".set*"))


def test_a_failed_write_says_where_the_finished_shards_are(
    image_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, sync, calls = image_folder(a=6), os.fsync, []

    def full(descriptor: int) -> None:
        calls.append(descriptor)
        if len(calls) == 6:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    with monkeypatch.context() as patched:
        patched.setattr(writer.os, "fsync", full)
        with pytest.raises(DataError, match=r"No space left .* are kept for the same command, in "):
            run_conversion(root, tmp_path / "set", SHORT)
    assert len(staged(tmp_path)) == 3
    run_conversion(root, tmp_path / "set", SHORT)
    assert verify(tmp_path / "set").images == 6


@pytest.mark.parametrize("place", ["appear", "remove_journals"])
def test_a_crash_at_the_end_costs_nothing(
    place: str,
    image_folder: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    root, out = image_folder(a=6), tmp_path / "set"

    def crash(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(writer.Staging if place == "appear" else writer, place, crash)
        with pytest.raises(KeyboardInterrupt):
            run_conversion(root, out, SHORT)
    found = staged(tmp_path) or sorted(out.glob("shard-*.tar"))
    before = [path.stat().st_mtime_ns for path in found]
    assert len(before) == 3
    done = run_conversion(root, out, SHORT)
    assert done.already_there == (place == "remove_journals")
    assert [path.stat().st_mtime_ns for path in sorted(out.glob("shard-*.tar"))] == before
    assert len(list(out.iterdir())) == 4  # and no journal


def test_features_beside_a_set_do_not_make_it_a_stranger(
    image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = image_folder(a=3)
    convert(root, tmp_path / "set")
    (tmp_path / "set/class_features-224.safetensors").write_bytes(b"x")
    assert run_conversion(root, tmp_path / "set").already_there
    convert(root, tmp_path / "set", force=True, seed=1)
    assert load_index(tmp_path / "set").options["seed"] == 1


def test_a_set_made_before_an_option_existed_is_the_same(
    image_folder: Callable[..., Path], tmp_path: Path
) -> None:
    root = image_folder(a=3)
    convert(root, tmp_path / "set")
    path = tmp_path / "set/index.json"
    index = json.loads(path.read_text())
    del index["options"]["class_names"]
    path.write_text(json.dumps(index))
    assert run_conversion(root, tmp_path / "set").already_there


def test_ctrl_c_says_that_the_same_command_goes_on(tmp_path: Path) -> None:
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "fasttrain_data", "convert", "digits", str(tmp_path / "set")),
            "--images-per-shard=1",
        ],
        env={**os.environ, "PYTHONPATH": PACKAGES},
        stderr=subprocess.PIPE,
        text=True,
        # What a shell starts in the background is deaf to Ctrl-C, and so are its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 60
    while len(staged(tmp_path)) < 5:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130
    assert said == "fasttrain-data: stopped; the same command resumes\n"
    assert len(staged(tmp_path)) >= 5


def test_a_process_that_cannot_be_started_is_an_error_and_not_a_wait(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fork, calls = os.fork, []

    def failing() -> int:
        calls.append(1)
        if len(calls) == 2:
            raise BlockingIOError(11, "Resource temporarily unavailable")
        return fork()

    monkeypatch.setattr(os, "fork", failing)
    with pytest.raises(BlockingIOError):
        list(in_order(lambda number: number, 50, 4))


def test_an_error_ends_the_work_that_is_under_way() -> None:
    def work(number: int) -> int:
        if number == 1:
            raise DataError("a bad file")
        time.sleep(0 if number == 0 else 60)
        return number

    began = time.monotonic()
    with pytest.raises(DataError, match="a bad file"):
        list(in_order(work, 6, 3))
    assert time.monotonic() - began < 20


@pytest.fixture
def interrupted() -> Iterator[None]:
    """As Python starts in a terminal: a shell's background jobs ignore the signal."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_ctrl_c_ends_the_work_that_is_under_way(interrupted: None) -> None:
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        list(in_order(lambda _: time.sleep(60), 6, 3))
    assert time.monotonic() - began < 20


def test_a_shard_that_an_error_cut_short_counts_as_none(
    image_folder: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, first = image_folder(a=12), permutation(12, SHARD_WRITER, 0)[:2]
    (root / f"a/{first[0]:02d}.png").write_text("no image")
    read = FolderSource.read

    def slow(self: FolderSource, item: int, wanted: Wanted) -> Any:
        time.sleep(0.5 if item in first else 60)
        return read(self, item, wanted)

    began = time.monotonic()
    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "read", slow)
        with pytest.raises(DataError, match="bad files: 1"):
            run_conversion(root, tmp_path / "set", SMALL, workers=3)
    assert time.monotonic() - began < 20
    assert [path.name for path in staged(tmp_path)] == ["shard-000000.tar"]
    assert list(tmp_path.glob(".set.partial-*/*.part"))  # the others were under way
    assert run_conversion(root, tmp_path / "set", SMALL, max_bad=1).index.images == 11
    verify(tmp_path / "set")
