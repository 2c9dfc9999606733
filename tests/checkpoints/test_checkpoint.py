"""Checkpoints: whole or not there, damage found and named, the right ones kept."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from fasttrain.checkpoints import checkpoint
from fasttrain.system import tensors
from fasttrain.system.errors import UserError
from fasttrain.system.files import write_atomic
from fasttrain.system.tensors import write_tensors

TENSORS = {"network": {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor(3)}}


def save(folder: Path, images: int, **state: object) -> checkpoint.Step:
    return checkpoint.save(folder, images, TENSORS, {"images": images, **state})


def test_what_is_saved_comes_back_to_the_bit(tmp_path: Path) -> None:
    half = torch.randn(3, 4, dtype=torch.bfloat16)
    view = torch.randn(4, 6)[:, ::2]
    step = checkpoint.save(tmp_path, 7, {"x": {"half": half, "view": view, "same": view}}, {"k": 1})
    loaded = step.tensors("x")
    assert torch.equal(loaded["half"], half)
    assert torch.equal(loaded["view"], view)
    assert torch.equal(loaded["same"], view)
    assert step.state == {"k": 1}
    assert step.damage() is None
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-0000000007"]


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o027, 0o640), (0o077, 0o600)])
def test_others_may_read_what_the_user_lets_them(tmp_path: Path, mask: int, mode: int) -> None:
    before = os.umask(mask)
    try:
        step = save(tmp_path, 7)
        write_tensors(tmp_path / "base.safetensors", TENSORS["network"])
    finally:
        os.umask(before)
    files = [*step.path.iterdir(), tmp_path / "base.safetensors"]
    assert {path.name: path.stat().st_mode & 0o777 for path in files} == {
        path.name: mode for path in files
    }


def test_newest_is_by_number_and_unfinished_ones_do_not_count(tmp_path: Path) -> None:
    for images in (900, 1000, 99):
        save(tmp_path, images)
    (tmp_path / "step-0000002000.tmp").mkdir()
    found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.images == 1000
    assert [step.images for step in checkpoint.steps(tmp_path)] == [99, 900, 1000]


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def truncate(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 1)


@pytest.mark.parametrize("damage", [flip, truncate, Path.unlink])
@pytest.mark.parametrize("name", ["network.safetensors", "state.json", "manifest.json"])
def test_a_damaged_step_is_passed_over_and_named(tmp_path: Path, damage, name: str) -> None:
    save(tmp_path, 1)
    newest = save(tmp_path, 2)
    if (damage, name) == (flip, "manifest.json"):
        (newest.path / name).write_text("{")
    else:
        damage(newest.path / name)
    with pytest.warns(UserWarning, match=f"{newest.path.name} is skipped: .*{name.split('.')[0]}"):
        found = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.images == 1
    with pytest.raises(UserError, match="cannot be used"):
        checkpoint.find(tmp_path, "2")


def test_a_step_can_be_written_again_over_its_damaged_self(tmp_path: Path) -> None:
    flip(save(tmp_path, 5).path / "network.safetensors")
    assert save(tmp_path, 5).damage() is None


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    for images, fd in ((1, 9.0), (2, 3.0), (3, 5.0), (4, None), (5, 8.0)):
        save(tmp_path, images, fd=fd)
    checkpoint.prune(tmp_path, keep=2, newest=5)
    assert [step.images for step in checkpoint.steps(tmp_path)] == [2, 4, 5]
    assert checkpoint.find(tmp_path, "best").images == 2
    assert checkpoint.find(tmp_path, "latest").images == 5
    assert checkpoint.find(tmp_path, "4").images == 4
    with pytest.raises(UserError, match="it has: 2, 4, 5"):
        checkpoint.find(tmp_path, "3")


def evaluated(score: float, metric: str = "fd", code: str = "0a") -> dict[str, object]:
    return {"metric": metric, "score": score, "values": {}, "protocol": {"code": code}}


def test_without_an_evaluation_the_refusal_is_of_no_command_alone(tmp_path: Path) -> None:
    save(tmp_path, 1)  # `--checkpoint best` and `from: RUN@best` both say it
    with pytest.raises(UserError, match=r"no checkpoint holds an evaluation .*; name `latest`"):
        checkpoint.find(tmp_path, "best")


def test_the_best_is_by_the_lowest_score_of_what_compares_with_the_newest(tmp_path: Path) -> None:
    """Scores of another metric or protocol are other numbers; steps of earlier versions have fd."""
    save(tmp_path, 1, fd=0.1)
    save(tmp_path, 2, evaluation=evaluated(0.2, code="0b"))
    save(tmp_path, 3, evaluation=evaluated(-0.9, metric="precision"))
    assert checkpoint.find(tmp_path, "best").images == 3
    for images, score in ((4, 7.0), (5, 3.0), (6, 3.0), (7, 5.0)):
        save(tmp_path, images, evaluation=evaluated(score))
    save(tmp_path, 8, evaluation=None)
    assert checkpoint.find(tmp_path, "best").images == 6
    checkpoint.prune(tmp_path, keep=1, newest=8)
    assert [step.images for step in checkpoint.steps(tmp_path)] == [1, 2, 3, 6, 8]


def test_pruning_keeps_the_only_intact_step_before_damaged_newer_ones(tmp_path: Path) -> None:
    for images in (4000, 6000):
        truncate(save(tmp_path, images).path / "network.safetensors")
    intact = save(tmp_path, 2000)  # the run began again from what it had
    checkpoint.prune(tmp_path, keep=1, newest=2000)
    assert checkpoint.steps(tmp_path) == [intact]
    assert checkpoint.newest(tmp_path) == intact


def test_tidying_takes_what_was_left_half_done_and_nothing_else(tmp_path: Path) -> None:
    kept = save(tmp_path, 5)
    (tmp_path / "step-0000000009.tmp").mkdir()
    (tmp_path / "step-0000000003.old.tmp").mkdir()
    (tmp_path / "step-0000000003.old.tmp" / "state.json").write_text("{}")
    checkpoint.tidy(tmp_path)
    assert list(tmp_path.iterdir()) == [kept.path]


def test_tidying_finishes_what_a_kill_between_two_renames_left(tmp_path: Path) -> None:
    """A damaged step was moved aside, its whole successor has not taken its place yet."""
    step = save(tmp_path, 5)
    shutil.copytree(step.path, tmp_path / "step-0000000005.tmp")
    flip(step.path / "network.safetensors")
    step.path.rename(tmp_path / "step-0000000005.old.tmp")
    checkpoint.tidy(tmp_path)
    assert list(tmp_path.iterdir()) == [step.path]
    assert step.damage() is None
    step.path.rename(tmp_path / "step-0000000005.tmp")
    flip(tmp_path / "step-0000000005.tmp" / "network.safetensors")
    checkpoint.tidy(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("which", ["0", "000"])
def test_the_step_of_no_images_has_a_number_too(tmp_path: Path, which: str) -> None:
    step = save(tmp_path, 0)
    assert checkpoint.find(tmp_path, which) == step


def test_a_failing_disk_leaves_the_earlier_checkpoints(tmp_path: Path, monkeypatch) -> None:
    save(tmp_path, 1)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "save_file", full)
    with pytest.raises(OSError, match="No space"):
        save(tmp_path, 2)
    assert [p.name for p in tmp_path.iterdir()] == ["step-0000000001"]


@contextmanager
def without_descriptors() -> Iterator[None]:
    """Nothing can be opened, for real."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_what_cannot_be_read_for_now_is_not_damaged(tmp_path: Path) -> None:
    """A step that is passed over is deleted when the next is saved, and so is the best one that
    seems to have no evaluation."""
    best = save(tmp_path, 1, evaluation={"metric": "fd", "score": 1.0})
    save(tmp_path, 2, evaluation={"metric": "fd", "score": 2.0})
    shutil.copytree(best.path, tmp_path / "step-0000000003.tmp")
    before = sorted(tmp_path.rglob("*"))
    for act in (
        best.damage,
        lambda: checkpoint.newest(tmp_path),
        lambda: checkpoint.prune(tmp_path, 1, 2),
        lambda: checkpoint.tidy(tmp_path),
    ):
        with without_descriptors(), pytest.raises(OSError, match="Too many open files") as caught:
            act()
        assert caught.value.errno == errno.EMFILE
    assert sorted(tmp_path.rglob("*")) == before
    checkpoint.prune(tmp_path, 1, 2)
    assert [step.images for step in checkpoint.steps(tmp_path)] == [1, 2]


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO])
def test_a_failing_disk_is_named_with_its_error(
    tmp_path: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the library that writes tensors, and of a file that is synced."""
    text = f"Error while serializing: {os.strerror(number)} (os error {number})"

    def refuse(*_: object) -> None:
        raise SafetensorError(text)

    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    for owner, name, act in ((tensors, "save_file", refuse), (os, "fsync", fail)):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, act)
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                save(tmp_path, 1)
        assert caught.value.errno == number
        assert str(caught.value.filename).startswith(str(tmp_path / "step-0000000001.tmp"))


WRITER = """
import sys, torch
from pathlib import Path
from fasttrain.checkpoints import checkpoint
folder = Path(sys.argv[1])
big = {"x": {str(i): torch.full((1 << 18,), float(i)) for i in range(16)}}
print("ready", flush=True)
for n in range(1, 10_000):
    checkpoint.save(folder, n, big, {"images": n})
    checkpoint.prune(folder, 2, n)
"""


@pytest.mark.slow
def test_sigkill_while_writing_never_leaves_a_damaged_step(tmp_path: Path) -> None:
    for delay in (0.03, 0.11, 0.2, 0.31):
        process = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        process.stdout.readline()
        while not checkpoint.steps(tmp_path):
            time.sleep(0.01)
        time.sleep(delay)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        found = checkpoint.steps(tmp_path)
        assert found
        for step in found:
            assert step.damage() is None
            assert step.state["images"] == step.images


def test_atomic_text(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_atomic(path, json.dumps({"ü": 1}))
    write_atomic(path, json.dumps({"ü": 2}))
    assert json.loads(path.read_text()) == {"ü": 2}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
