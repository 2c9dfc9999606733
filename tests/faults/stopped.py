"""Asked to stop, abandoned, frozen: signals, dead ranks, and `fasttrain launch`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fasttrain.checkpoints import checkpoint
from tests.faults.killed import SAME
from tests.faults.lab import (
    KILLED,
    Lab,
    assert_same,
    fault,
    intact,
    lines,
    nth,
    patch_step,
    reached,
    wait_for,
)

LAUNCH = [sys.executable, "-m", "fasttrain", "launch", "--gpus=2"]
STOPPED = "checkpoint at the iteration's end, status 85; "


def tensors_same(lab: Lab, run: Path, ranks: int) -> None:
    """The end is bit-identical to the unbroken run's; the lines have the stop's own one more, with
    another window of means."""
    lab.train(run, expect=[0] * ranks)
    reference = lab.reference(ranks, 1)
    (run / "stats.jsonl").write_bytes((reference / "stats.jsonl").read_bytes())
    assert_same(reference, run)


def signalled(lab: Lab, number: signal.Signals, rank: int, ranks: int) -> None:
    run = lab.new_run(f"{number.name}-{rank}-{ranks}")
    children = lab.start(run, "report_every=64", ranks=ranks)
    wait_for(reached(run, 64))
    os.kill(children[rank].pid, number)
    found = [child.wait() for child in children]
    said = "\n".join(child.said() for child in children)
    assert found == [85] * ranks, said
    at = checkpoint.find(run / "checkpoints").images
    assert 64 <= at < 192  # the iteration that ran; with several ranks, the next one is not begun
    assert f"stopped at {at} images; the same command resumes it" in said
    assert lines(run)[-1]["images"] == at
    tensors_same(lab, run, ranks)


@fault("stop", "SIGTERM to one process", STOPPED + SAME)
def sigterm(lab: Lab) -> None:
    signalled(lab, signal.SIGTERM, 0, 1)


@fault("stop", "SIGUSR1 to one process", STOPPED + SAME)
def sigusr1(lab: Lab) -> None:
    signalled(lab, signal.SIGUSR1, 0, 1)


@fault("stop", "SIGTERM to rank 1 of two", "both ranks: " + STOPPED + SAME)
def sigterm_to_rank_1(lab: Lab) -> None:
    signalled(lab, signal.SIGTERM, 1, 2)


@fault("stop", "a second SIGTERM before the first could be obeyed", "ends at once; " + SAME)
def sigterm_twice(lab: Lab) -> None:
    run = lab.new_run("twice-asked")
    term = lambda: [os.kill(os.getpid(), signal.SIGTERM) for _ in range(2)]  # noqa: E731
    lab.train(run, inject=lambda: patch_step(nth(4, term)), expect=[-signal.SIGTERM])
    assert intact(run) == [64]
    lab.assert_ends_like_unbroken(run)


@fault("a rank gone", "os._exit(17) on rank 1 of two", "rank 0 ends with status 75; " + SAME)
def exit_on_rank_1(lab: Lab) -> None:
    run = lab.new_run("exit")
    inject = lambda: patch_step(nth(4, lambda: os._exit(17)))  # noqa: E731
    lab.train(run, inject=inject, on=[1], expect=[75, 17])
    lab.assert_ends_like_unbroken(run, ranks=2)


@fault(
    "a rank gone",
    "rank 1 of two frozen (SIGSTOP), with a timeout of 6 s",
    "rank 0 ends with status 75 within it; " + SAME,
)
def frozen_rank(lab: Lab) -> None:
    run = lab.new_run("frozen")
    freeze = lambda: os.kill(os.getpid(), signal.SIGSTOP)  # noqa: E731
    inject = lambda: patch_step(nth(4, freeze))  # noqa: E731
    children = lab.start(run, "engine.timeout_minutes=0.1", ranks=2, inject=inject, on=[1])
    wait_for(reached(run, 96))
    began = time.monotonic()
    assert children[0].wait(30) == 75, children[0].said()
    assert time.monotonic() - began < 15
    os.kill(children[1].pid, signal.SIGKILL)
    assert children[1].wait() == KILLED
    lab.assert_ends_like_unbroken(run, ranks=2)


@fault(
    "a launcher gone",
    "the launcher of two ranks killed",
    "the ranks, without a parent, write a checkpoint and end; " + SAME,
)
def orphans(lab: Lab) -> None:
    run = lab.new_run("orphans")
    launcher = os.fork()
    if not launcher:
        lab.start(run, ranks=2)
        time.sleep(300)
    wait_for(reached(run, 32))
    children = descendants(launcher)
    assert len(children) == 2
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    wait_for(lambda: not any(alive(pid) for pid in children))
    at = checkpoint.find(run / "checkpoints").images
    assert f"stopped at {at} images" in (lab.folder / f"{run.name}-0.log").read_text()
    tensors_same(lab, run, 2)


def launched(lab: Lab, run: Path, *options: str) -> subprocess.Popen[bytes]:
    log = lab.folder / f"{run.name}.log"
    return subprocess.Popen(
        [*LAUNCH, *options, "--", *lab.settings(run, ranks=2)],
        env=os.environ | {"DS_ACCELERATOR": "cpu"},
        stdout=log.open("wb"),
        stderr=subprocess.STDOUT,
    )


def with_launcher(
    lab: Lab, name: str, harm: Callable[[int, list[int]], None], *options: str
) -> tuple[Path, int, str]:
    """Launch two ranks, do harm (given the launcher and the ranks) after the first checkpoint, wait
    for the end; nothing of it may be left."""
    run = lab.new_run(name)
    parent = launched(lab, run, *options)
    try:
        wait_for(reached(run, 64), 180)
        family = descendants(parent.pid)
        ranks = [pid for pid in family if "RANK=" in environment(pid)]
        assert len(ranks) == 2
        harm(parent.pid, ranks)
        status = parent.wait(240)
    finally:
        parent.kill()
        parent.wait()
    wait_for(lambda: not any(alive(pid) for pid in family), 10)
    return run, status, (lab.folder / f"{name}.log").read_text(errors="replace")


@fault(
    "launch",
    "SIGTERM to `fasttrain launch` of two ranks",
    "the ranks write a checkpoint, status 85, no process is left; " + SAME,
)
def sigterm_to_launch(lab: Lab) -> None:
    run, status, said = with_launcher(
        lab, "launch-term", lambda parent, _: os.kill(parent, signal.SIGTERM)
    )
    assert status == 85, said[-3000:]
    assert intact(run)[-1] < 192
    tensors_same(lab, run, 2)


@fault(
    "launch",
    "SIGKILL to a rank under `fasttrain launch --max-restarts 1`",
    "started again from the last good checkpoint, status 0, bit-identical; no process is left",
)
def restarted(lab: Lab) -> None:
    run, status, said = with_launcher(
        lab,
        "launch-kill",
        lambda _, ranks: os.kill(ranks[1], signal.SIGKILL),
        "--max-restarts=1",
        "--pause=0",
    )
    assert status == 0, said[-3000:]
    # Of the killed rank, or of the other, which has lost contact: whichever DeepSpeed sees first.
    assert re.search(r"the job ended with status (137|75); starting it again in 0 s", said)
    assert_same(lab.reference(2, 1), run)


@fault(
    "launch",
    "SIGKILL to the process that DeepSpeed's launcher starts for this machine, whose own status is "
    "then 0",
    "status 75 and one line that says how far the run is; no process is left",
)
def launcher_child_killed(lab: Lab) -> None:
    run = lab.half_done("launch-child")
    parent = launched(lab, run)
    family: list[int] = []
    try:
        wait_for(lambda: bool(starters(parent.pid)), 120)
        family = descendants(parent.pid)
        os.kill(starters(parent.pid)[0], signal.SIGKILL)
        status = parent.wait(60)
    finally:
        parent.kill()
        parent.wait()
    said = (lab.folder / f"{run.name}.log").read_text(errors="replace")
    assert status == 75, said[-3000:]
    lines = [line for line in said.splitlines() if line.startswith("fasttrain: error: ")]
    assert len(lines) == 1, said
    assert lines[0].endswith(f"the last good checkpoint in {run} is of 128 images, not 192")
    wait_for(lambda: not any(alive(pid) for pid in family), 10)


def starters(launch: int) -> list[int]:
    """DeepSpeed's processes that start ranks, below `fasttrain launch`."""

    def said(pid: int) -> str:
        try:
            return Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            return ""  # it has ended

    return [pid for pid in descendants(launch) if "deepspeed.launcher.launch" in said(pid)]


def descendants(pid: int) -> list[int]:
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended meanwhile
            for child in map(int, tasks.read_text().split()):
                found += [child, *descendants(child)]
    return found


def environment(pid: int) -> str:
    return Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace").replace("\0", "\n")


def alive(pid: int) -> bool:
    """Whether the process is there, and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
