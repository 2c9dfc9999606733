"""When `fasttrain launch` starts a job again, how long it waits, and what it says at the end."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from fasttrain.checkpoints import checkpoint
from fasttrain.cli import launcher as launch
from fasttrain.cli.hosts import Hosts
from fasttrain.cli.launcher import Job
from tests.runs.calling import call

PDSH = '''#!{python}
"""pdsh's rules for a line, and a shell that tells the words of what it would start."""
import re, subprocess, sys
words = sys.argv[sys.argv.index("-w") + 2 :]
assert sys.argv[sys.argv.index("-w") + 1] == "gpu01,gpu02"
line = re.sub("%([hnu%])", lambda m: {{"%": "%", "n": "0"}}.get(m[1], "host"), " ".join(words))
line = line.replace({python!r} + " -u -m deepspeed.launcher.launch", {python!r} + " {show}")
sys.exit(subprocess.run(["sh", "-c", line]).returncode)
'''
SHOW = "import json, sys; open({out!r}, 'w').write(json.dumps(sys.argv[1:]))"


class Script:
    """What stands in for DeepSpeed's launcher: for each start a status, and the images that the run
    has afterwards; it keeps the options and words that it was given."""

    def __init__(self, run: Path, *starts: tuple[int, int]) -> None:
        self.run, self.starts = run, list(starts)
        self.given: list[tuple[list[str], list[str]]] = []
        self.hostfiles: list[str] = []
        self.then: Callable[[Job], object] = lambda job: None

    def __call__(self, job: Job, options: Sequence[str], command: Sequence[str]) -> int:
        self.given.append((list(options), list(command)))
        path = next(o for o in options if o.startswith("--hostfile=")).partition("=")[2]
        self.hostfiles.append(Path(path).read_text() if path else "")
        status, images = self.starts.pop(0)
        if images:
            checkpoint.save(self.run / "checkpoints", images, {}, {"images": images})
        self.then(job)
        return status


@pytest.fixture
def scripted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Script]:
    def script(*starts: tuple[int, int]) -> Script:
        made = Script(tmp_path / "run", *starts)
        monkeypatch.setattr(Job, "run", lambda *arguments: made(*arguments))
        return made

    return script


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    return ["finetune", "digits-d2o-f", f"run={tmp_path / 'run'}", "images=640"]


def test_status_0_is_of_a_finished_run_alone(scripted, command, tmp_path, capsys) -> None:
    scripted((0, 0))
    assert launch.launch(command, Hosts(gpus=2)) == 75
    assert capsys.readouterr().err == (
        f"fasttrain: error: the job ended before it was finished: the last good checkpoint in "
        f"{tmp_path / 'run'} is of 0 images, not 640\n"
    )
    scripted((0, 576))
    assert launch.launch(command, Hosts(gpus=2)) == 75
    scripted((0, 640))
    assert launch.launch(command, Hosts(gpus=2)) == 0
    (tmp_path / "run/checkpoints/step-0000000640/state.json").write_text("{}")
    scripted((0, 0))
    with pytest.warns(UserWarning, match="step-0000000640 is skipped"):
        assert launch.launch(command, Hosts(gpus=2)) == 75


def test_only_starts_without_progress_are_counted(scripted, command, capsys) -> None:
    """Each newer checkpoint gives all of them back, and the first pause."""
    job = scripted((137, 0), (75, 64), (75, 64), (134, 128), (137, 128), (0, 640))
    assert launch.launch(command, Hosts(gpus=2), max_restarts=2, pause=0.001) == 0
    assert not job.starts
    said = capsys.readouterr().err
    assert said.splitlines()[0] == (
        "fasttrain: the job ended with status 137; starting it again in 0.001 s from its last good "
        "checkpoint, of 0 images (1 of 2 without progress)"
    )
    found = re.findall(r"again in (\S+) s .* of (\d+) images \((\d) of 2", said)
    assert [" ".join(each) for each in found] == [
        *("0.001 0 1", "0.001 64 1", "0.002 64 2", "0.001 128 1", "0.002 128 2"),
    ]

    job = scripted((75, 0), (75, 0), (1, 0))
    assert launch.launch(command, Hosts(gpus=2), max_restarts=2, pause=0) == 1


def test_a_disk_that_fails_under_the_launcher_too_is_a_job_that_broke(
    scripted, command, tmp_path, monkeypatch, capsys
) -> None:
    """What broke the job may be gone at the next start; the launcher is there to make it."""
    job = scripted((75, 64), (0, 640))
    newest, fails = checkpoint.newest, iter([False, True, False])

    def stale(folder: Path) -> Any:
        if next(fails):
            raise OSError(errno.ESTALE, "Stale file handle", str(folder))
        return newest(folder)

    monkeypatch.setattr(checkpoint, "newest", stale)
    assert launch.launch(command, Hosts(gpus=2), max_restarts=1, pause=0) == 0
    assert not job.starts
    warning = f"fasttrain: warning: cannot read the checkpoints in {tmp_path / 'run'}: Stale file"
    assert capsys.readouterr().err.startswith(warning)


def test_a_machine_that_cannot_start_the_job_now_tries_again(
    scripted, command, tmp_path, monkeypatch, capsys
) -> None:
    """The hostfile's mount is away, then there is no process to be had."""
    (tmp_path / "hosts").write_text("localhost slots=2\n")
    job = scripted((0, 640))
    reads, forks = iter([0, errno.ESTALE, 0, 0]), iter([errno.EAGAIN, 0])

    def failing(act: Callable[..., Any], faults: Iterator[int]) -> Callable[..., Any]:
        def do(*arguments: Any, **options: Any) -> Any:
            if fault := next(faults):
                raise OSError(fault, os.strerror(fault))
            return act(*arguments, **options)

        return do

    monkeypatch.setattr(Path, "read_text", failing(Path.read_text, reads))
    monkeypatch.setattr(Job, "run", failing(Job.run, forks))
    hosts = Hosts(hostfile=tmp_path / "hosts")
    assert launch.launch(command, hosts, max_restarts=2, pause=0) == 0
    assert not job.starts
    said = capsys.readouterr().err.splitlines()
    start = "fasttrain: error: the job cannot be started: [Errno "
    assert [line.split("] ")[1] for line in said if line.startswith(start)] == [
        *("Stale file handle", "Resource temporarily unavailable"),
    ]


@pytest.mark.parametrize("status", [0, 2, 85])
def test_what_is_final_is_not_started_again(scripted, command, status: int) -> None:
    scripted((status, 640))
    assert launch.launch(command, Hosts(gpus=2), max_restarts=5, pause=0) == status


def test_pauses_grow_to_ten_minutes(scripted, command, monkeypatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(Job, "rest", lambda job, seconds: waited.append(seconds))
    scripted(*[(75, 0)] * 9)
    assert launch.launch(command, Hosts(gpus=2), max_restarts=8) == 75
    assert waited == [10, 20, 40, 80, 160, 320, 600, 600]


def test_a_signal_ends_the_pause(scripted, command) -> None:
    scripted((75, 0)).then = lambda job: threading.Timer(
        0.3, lambda: os.kill(os.getpid(), signal.SIGTERM)
    ).start()
    began = time.monotonic()
    assert launch.launch(command, Hosts(gpus=2), max_restarts=1, pause=300) == 75
    assert time.monotonic() - began < 60
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_a_job_goes_on_with_the_hosts_that_are_left(
    scripted, command, tmp_path, monkeypatch, capsys
) -> None:
    """And with all of them when they are back; too few are waited for like a job that broke."""
    gone: list[list[str]] = [[], ["gpu02"], ["gpu01", "gpu02"], []]
    monkeypatch.setattr("fasttrain.cli.hosts.silent", lambda hosts, seconds: gone.pop(0))
    monkeypatch.setattr("fasttrain.cli.hosts._check_remote", lambda: None)
    (tmp_path / "hosts").write_text("gpu01 slots=2\ngpu02 slots=2\n")
    job = scripted((255, 64), (75, 64), (0, 640))
    hosts = Hosts(hostfile=tmp_path / "hosts", min_gpus=2)
    assert launch.launch(command, hosts, max_restarts=3, pause=0) == 0
    both = "gpu01 slots=2\ngpu02 slots=2\n"
    assert job.hostfiles == [both, "gpu01 slots=2\n", both]
    said = capsys.readouterr().err
    assert "no answer from gpu02: continuing with 2 of 4 GPUs (gpu01 slots=2)" in said
    assert "error: 0 GPUs can be used, not 2: no answer from gpu01, gpu02" in said
    assert not gone


def test_a_killed_process_has_the_status_that_a_shell_gives_it() -> None:
    """DeepSpeed ends with the -9 of a process that was killed, which arrives as 247."""
    assert [launch._status(n) for n in (-9, 247, 250, 241)] == [137, 137, 134, 143]
    assert [launch._status(n) for n in (0, 1, 2, 75, 85, 130, 137, 255)] == [
        *(0, 1, 2, 75, 85, 130, 137),
        255,
    ]


def test_mistakes_end_with_status_2_before_anything_is_started(
    capsys: pytest.CaptureFixture[str], command, tmp_path, monkeypatch
) -> None:
    monkeypatch.setattr(Job, "run", lambda *_: pytest.fail("started"))
    (tmp_path / "twice").write_text("a slots=1\na slots=1\n")
    for options, said in (
        (["--hostfile", tmp_path / "nothere"], "cannot read the hostfile"),
        (["--hostfile", tmp_path / "twice"], "twice, line 2: a occurs twice"),
        (["--gpus", 3], "3 processes cannot share a batch of these settings: use one of 1, 2, 4"),
        (["--gpus", 2, "--nodes", 2], "--hostfile must name them"),
    ):
        status, _, error = call(capsys, "launch", *options, "--", *command)
        assert status == 2
        assert said in error
        assert len(error.splitlines()) == 1


def test_overrides_arrive_on_other_hosts_as_they_were_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """DeepSpeed's own runner, with a pdsh that gives its line to a shell; nothing was trained, and
    so its status 0 is not believed."""
    tools, out, show = tmp_path / "bin", tmp_path / "out.json", tmp_path / "show.py"
    tools.mkdir()
    show.write_text(SHOW.format(out=str(out)))
    (tools / "pdsh").write_text(PDSH.format(python=sys.executable, show=show))
    (tools / "ssh").write_text("#!/bin/sh\necho 127.0.0.1\n")
    for tool in tools.iterdir():
        tool.chmod(0o755)
    (tmp_path / "hosts").write_text("gpu01 slots=1\ngpu02 slots=1\n")
    words: list[Any] = [
        "finetune",
        "digits-d2o-f",
        "discriminator.backbones=[{name: lite0, resolution: 64}]",
        f"run={tmp_path}/a dir/100%n '$HOME' \"x\" ; * \\ `id` é💾",
        f"data.path={tmp_path}/%h;$(id)&été\"'*",
        "init='*; it''s $5'",
    ]
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    monkeypatch.chdir(tmp_path)
    status, _, error = call(capsys, "launch", "--hostfile", "hosts", "--", *words)
    assert status == 75, error
    assert "the job ended before it was finished" in error
    arrived = json.loads(out.read_text())
    assert arrived[arrived.index("fasttrain") :] == ["fasttrain", *words]
