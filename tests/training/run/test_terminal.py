"""What a person sees of a training, on a terminal of 80 columns and without one."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import sys
import termios
import time
from collections.abc import Callable
from fcntl import ioctl
from pathlib import Path

import pytest

from fasttrain.checkpoints import checkpoint
from fasttrain.cli.app import main
from fasttrain.training.average import Average
from fasttrain.training.run.progress import duration, shortened, significant
from fasttrain.training.run.words import _idle_gpu
from fasttrain_data.conversion import convert
from tests.faults.child import command, do_and_exit, warm_up
from tests.tiny import ONE_LEVEL

pytestmark = pytest.mark.slow

OPTIONS = (
    *ONE_LEVEL,
    "precision=float32",
    "batch=64",
    "report_every=128",
    "checkpoint.every=1000000",
    "evaluate.every=null",
)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("terminal") / "digits"
    convert("digits", folder)
    return folder


class Terminal:
    """A command on a terminal of 24 lines of 80 columns, forked or (`own`) as a new interpreter;
    `before` runs ahead of a forked one."""

    def __init__(
        self, *words: object, own: bool = False, before: Callable[[], object] = lambda: None
    ) -> None:
        self.text, arguments = "", [str(word) for word in words]
        warm_up()
        self.pid, self.descriptor = pty.fork()
        if self.pid:
            return
        ioctl(0, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "TERM": "xterm"}
        # ignored when the tests are a background job
        signal.signal(signal.SIGINT, signal.SIG_DFL if own else signal.default_int_handler)
        if own:
            os.execv(sys.executable, [sys.executable, "-m", "fasttrain", *arguments])

        def work() -> None:
            sys.argv = ["fasttrain", *arguments]
            before()
            main()

        do_and_exit(work)

    def read_until(self, pattern: str | None) -> None:
        """Read until the text has a pattern, or to its end."""
        until = time.monotonic() + 240
        while pattern is None or not re.search(pattern, self.lines()):
            assert time.monotonic() < until, self.text
            if not select.select([self.descriptor], [], [], 0.5)[0]:
                continue
            try:
                data = os.read(self.descriptor, 65536)
            except OSError:  # what Linux says at the end
                data = b""
            if not data:
                assert pattern is None, self.text
                return
            self.text += data.decode(errors="replace")

    def press(self, key: bytes) -> None:
        os.write(self.descriptor, key)

    def status(self) -> int:
        """Read to the end; the exit status."""
        self.read_until(None)
        os.close(self.descriptor)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])

    def lines(self) -> str:
        """The text without what moves the cursor and colours it."""
        return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.text).replace("\r", "\n")


CTRL_C = b"\x03"


def test_reports_stay_above_the_bar_and_the_end_says_what_is_next(
    shards: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    command = ("pretrain", "digits-edm", f"data.path={shards}", f"run={run}", *OPTIONS)
    terminal = Terminal(*command, "images=512")
    assert terminal.status() == 0
    lines = [line for line in terminal.lines().splitlines() if line.strip()]
    own = [line for line in lines if str(tmp_path) not in line]  # paths are as long as they are
    assert max(map(len, own)) <= 80
    reports = [line for line in own if re.match(r" +(128|256|384|512) +\d", line)]
    assert len(reports) == 4
    bar = [line for line in own if re.search(r"━.* 512/512 .*images/s, 0 s left", line)]
    assert bar  # name, bar, count, pace in one line
    assert lines[::-1].index(bar[-1]) < lines[::-1].index(reports[-1])  # the bar is below
    assert f"{run}: CPU, 1 thread; float32; 1 process; data {shards}" in terminal.lines()
    assert f"512 images seen: the diffusion model is in {run}/checkpoints" in terminal.lines()
    assert f"next: fasttrain sample {run} --out grid.png" in terminal.lines()

    again = Terminal(*command, "images=512")  # a finished run
    assert again.status() == 0
    assert "512 images seen" in again.lines()
    assert "resumed" not in again.lines()


def test_ctrl_c_stops_with_a_checkpoint(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    terminal = Terminal(
        "pretrain",
        "digits-edm",
        f"data.path={shards}",
        f"run={run}",
        *OPTIONS,
        "images=1000000",
        own=True,
    )
    terminal.read_until(r" 128 +\d")
    terminal.press(CTRL_C)
    assert terminal.status() == 85
    assert "stopping with a checkpoint after this iteration" in terminal.lines()
    images = checkpoint.find(run / "checkpoints").images
    assert images >= 128
    assert f"stopped at {images:,} images; the same command resumes it" in terminal.lines()


def hold_up() -> None:
    def evaluate(*_: object) -> None:
        print("evaluating", flush=True)
        time.sleep(100)

    Average.evaluate = evaluate  # type: ignore[assignment, method-assign]


@pytest.mark.parametrize("saved", [0, 64])
def test_a_second_ctrl_c_stops_at_once_and_says_what_is_left(
    shards: Path, tmp_path: Path, saved: int
) -> None:
    """The iteration is held up by an evaluation, which takes longer than anybody waits."""
    run = tmp_path / "run"
    terminal = Terminal(
        "pretrain",
        "digits-edm",
        f"data.path={shards}",
        f"run={run}",
        *OPTIONS,
        "images=1000000",
        "evaluate.every=128",
        *([f"checkpoint.every={saved}"] if saved else []),
        before=hold_up,
    )
    terminal.read_until("evaluating")
    terminal.press(CTRL_C)
    terminal.read_until("stopping with a checkpoint")
    terminal.press(CTRL_C)
    assert terminal.status() == 130
    newest = checkpoint.newest(run / "checkpoints")
    assert (newest.images if newest else 0) == saved
    left = (
        "stopped at once; the same command resumes from the checkpoint at 64 images"
        if saved
        else "stopped at once, before the first checkpoint: the same command starts from 0 images"
    )
    assert left in terminal.lines()


def test_without_a_terminal_there_are_lines_with_pace_and_time(
    shards: Path, tmp_path: Path
) -> None:
    words = ["pretrain", "digits-edm", f"data.path={shards}", f"run={tmp_path / 'run'}"]

    def apart() -> None:
        os.dup2(os.open(tmp_path / "out", os.O_WRONLY | os.O_CREAT), 1)

    child = command(tmp_path / "err", *words, *OPTIONS, "images=256", before=apart)
    assert child.wait() == 0, child.said()
    pattern = r"run +128/256 images +\d+\.\d s  [\d.,]+ images/s, \d+ s left  "
    assert re.search(pattern, child.said()), child.said()
    assert "\x1b" not in child.said()


def test_a_launched_process_leaves_ctrl_c_to_its_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    from fasttrain.system.signals import StopSignals

    handler = signal.default_int_handler
    of_the_tests = signal.signal(signal.SIGINT, handler)
    try:
        monkeypatch.setenv("RANK", "0")
        signals = StopSignals()
        assert signal.getsignal(signal.SIGINT) is handler
        signals.restore()
        monkeypatch.delenv("RANK")
        signals = StopSignals()
        assert signal.getsignal(signal.SIGINT) is not handler
        signals.restore()
        assert signal.getsignal(signal.SIGINT) is handler
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # a background job's
        signals = StopSignals()
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
        signals.restore()
    finally:
        signal.signal(signal.SIGINT, of_the_tests)


def test_a_gpu_that_is_not_used_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DS_ACCELERATOR", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _idle_gpu(tmp_path) == ""
    (tmp_path / "nvidia0").touch()
    assert "built without CUDA" in _idle_gpu(tmp_path) or "doctor" in _idle_gpu(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert _idle_gpu(tmp_path) == "CUDA_VISIBLE_DEVICES is empty"


def test_words_of_the_bar() -> None:
    assert [duration(s) for s in (5, 89, 90, 5400, 86_400 * 3)] == [
        "5 s",
        "89 s",
        "2 min",
        "1 h 30",
        "3 d 0 h",
    ]
    assert [significant(r) for r in (0.523, 9.26, 120.4, 12_000)] == [
        "0.52",
        "9.3",
        "120",
        "12,000",
    ]
    assert shortened("imagenet64-d2o-f", 10) == "imagenet6…"
