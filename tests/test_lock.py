"""The lock of a run directory, taken before anything is written, and the wish to stop."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fasttrain.checkpoints import lock as module
from fasttrain.checkpoints.directory import open_directory
from fasttrain.checkpoints.lock import Lock, ask_to_stop, wait_until_free
from fasttrain.settings import PretrainSettings
from fasttrain.settings.of_run import load_run_settings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import Unavailable, UserError


@contextmanager
def forked(act: Callable[[], object]) -> Iterator[int]:
    """Another process that has done `act` and stays until the end of the block."""
    ready, said = os.pipe()
    pid = os.fork()
    if not pid:
        kept = act()
        os.write(said, b"1")
        time.sleep(60)
        os._exit(kept is None)
    assert os.read(ready, 1) == b"1"
    try:
        yield pid
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ready)
        os.close(said)


def signed(run: Path) -> Lock:
    lock = Lock(run)
    lock.sign()
    return lock


def state(run: Path) -> dict[str, tuple[bytes, int, int]]:
    """Every file with its bytes, inode and time."""
    paths = [path for path in run.rglob("*") if path.is_file()]
    status = {str(path.relative_to(run)): path.stat() for path in paths}
    return {
        name: ((run / name).read_bytes(), found.st_ino, found.st_mtime_ns)
        for name, found in status.items()
    }


def test_a_refused_command_leaves_every_byte_as_it_was(tmp_path: Path) -> None:
    """Before, it wrote its own settings over the running run's."""
    run = tmp_path / "run"
    changes = [f"run={run}", f"data.path={tmp_path}"]
    ours = load_settings("digits-edm", changes, PretrainSettings)
    theirs = load_settings("digits-edm", [*changes, "seed=5"], PretrainSettings)
    with forked(lambda: open_directory(ours)) as pid:
        (run / "stop").touch()
        before = state(run)
        with pytest.raises(UserError, match=f"is being trained by process {pid} on "):
            open_directory(theirs)
        assert state(run) == before
        assert load_run_settings(run) == ours
        assert not wait_until_free(run, 0)
    assert wait_until_free(run, 0)
    open_directory(theirs).release()  # nothing is worth keeping yet
    assert load_run_settings(run) == theirs


def test_a_holder_that_is_gone_is_waited_for_and_then_status_75(tmp_path: Path) -> None:
    """What it left behind, such as a reader that it forked, still has the lock."""
    with forked(lambda: signed(tmp_path)):
        (tmp_path / "lock").write_text("process 3999999 on elsewhere\n")
        with pytest.raises(
            Unavailable, match=r"3999999 on elsewhere, which has shown no sign of li"
        ):
            Lock(tmp_path, patience=0)
        (tmp_path / "lock").write_text(f"process {os.getpid()} on {module.socket.gethostname()}\n1")
        with pytest.raises(Unavailable):  # another process has the number now
            Lock(tmp_path, patience=0)
    Lock(tmp_path, patience=0).release()


def test_a_holder_on_another_host_shows_that_it_lives(tmp_path: Path, monkeypatch) -> None:
    lock = signed(tmp_path)
    (tmp_path / "lock").write_text("process 1 on elsewhere\n")
    monkeypatch.setattr(module, "BEAT", 0.0)
    monkeypatch.setattr(module.time, "sleep", lambda _: lock.asked_to_stop())
    with pytest.raises(UserError, match="is being trained by process 1 on elsewhere"):
        Lock(tmp_path, patience=30)
    monkeypatch.setattr(module.time, "sleep", lambda _: lock.release())  # it ends meanwhile
    Lock(tmp_path, patience=30).release()


def test_a_wish_to_stop_counts_whatever_the_clocks_say(tmp_path: Path, monkeypatch) -> None:
    stop = tmp_path / "stop"
    ask_to_stop(tmp_path)
    os.utime(stop, (2e9, 2e9))  # of the day after tomorrow, and from before
    lock = signed(tmp_path)
    assert not stop.exists()
    assert not lock.asked_to_stop()
    ask_to_stop(tmp_path)
    os.utime(stop, (1, 1))  # of another host, whose clock is behind
    assert lock.asked_to_stop()
    lock.release()
    monkeypatch.setattr(Path, "unlink", lambda *_, **__: os.unlink("/nowhere/at/all"))
    lock = signed(tmp_path)  # it cannot be removed
    assert not lock.asked_to_stop()
    ask_to_stop(tmp_path)
    assert lock.asked_to_stop()
    lock.release()


@pytest.mark.parametrize("name", ["lock", "stop"])
def test_a_link_or_a_pipe_is_refused_and_nothing_written_through(name: str, tmp_path: Path) -> None:
    def act() -> None:
        if name == "lock":
            signed(tmp_path)
        else:
            ask_to_stop(tmp_path)

    path, victim = tmp_path / name, tmp_path / "victim"
    victim.write_text("precious")
    os.utime(victim, (1, 1))
    for plant in (
        lambda: path.symlink_to(victim),
        lambda: path.symlink_to(tmp_path / "new"),
        lambda: path.hardlink_to(victim),
        lambda: os.mkfifo(path),
        path.mkdir,
    ):
        plant()
        with pytest.raises(UserError, match=f"{name} (is not a regular|has another name)"):
            act()
        assert victim.read_text() == "precious"
        assert victim.stat().st_mtime == 1
        assert not (tmp_path / "new").exists()
        path.rmdir() if path.is_dir() else path.unlink()
