"""Asked to stop, abandoned, frozen: signals, dead ranks, and `fasttrain launch`."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from fasttrain.checkpoints import checkpoint
from fasttrain.evaluation import comparison
from fasttrain.training.run.opened import Opened
from tests.faults.child import Child, command
from tests.faults.forking import fork_pythons
from tests.faults.killed import SAME
from tests.faults.lab import (
    KILLED,
    Inject,
    Lab,
    assert_same,
    fault,
    intact,
    lines,
    nth,
    patch,
    patch_step,
    reached,
    slowly,
    wait_for,
)

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
    inject = slowly if ranks == 1 else and_terminated
    children = lab.start(run, "report_every=32", ranks=ranks, inject=inject)
    wait_for(reached(run, 32))
    for _ in range(ranks):  # of several, the node's manager and the launcher both ask it
        os.kill(children[rank].pid, number)
        time.sleep(0.02)
    found = [child.wait() for child in children]
    said = "\n".join(child.said() for child in children)
    assert found == [85] * ranks, said
    at = checkpoint.find(run / "checkpoints").images
    assert 32 <= at < 96  # the iteration that ran; with several ranks, the next one is not begun
    assert f"stopped at {at} images; the same command resumes it" in said
    assert lines(run)[-1]["images"] == at
    tensors_same(lab, run, ranks)


def and_terminated() -> None:
    """As srun does with the processes that have not ended when the first one has."""
    slowly()
    patch(Opened, "close", lambda *_: os.kill(os.getpid(), signal.SIGTERM))


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
    assert intact(run) == [32]
    lab.assert_ends_like_unbroken(run)


@fault("a rank gone", "os._exit(17) on rank 1 of two", "rank 0 ends with status 75; " + SAME)
def exit_on_rank_1(lab: Lab) -> None:
    run = lab.new_run("exit")
    inject = lambda: patch_step(nth(4, lambda: os._exit(17)))  # noqa: E731
    lab.train(run, inject=inject, on=[1], expect=[75, 17])
    lab.assert_ends_like_unbroken(run, ranks=2)


@fault(
    "a rank gone",
    "os._exit(17) on rank 1 of two in an evaluation",
    "rank 0 writes the checkpoint that was due and ends with status 75",
)
def exit_in_an_evaluation(lab: Lab) -> None:
    run = lab.new_run("exit-evaluating")
    inject = lambda: patch(comparison, "generate", lambda *_, **__: os._exit(17))  # noqa: E731
    lab.train(run, "evaluate.every=32", inject=inject, on=[1], expect=[75, 17])
    assert intact(run) == [32]


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
    wait_for(reached(run, 48))
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
        lab.start(run, ranks=2, inject=slowly)
        time.sleep(300)
    wait_for(reached(run, 16))
    children = descendants(launcher)
    assert len(children) == 2
    os.kill(launcher, signal.SIGKILL)
    os.waitpid(launcher, 0)
    wait_for(lambda: not any(alive(pid) for pid in children))
    at = checkpoint.find(run / "checkpoints").images
    assert f"stopped at {at} images" in (lab.folder / f"{run.name}-0.log").read_text()
    tensors_same(lab, run, 2)


def launched(lab: Lab, run: Path, *options: str, inject: Inject = lambda: None) -> Child:
    """`fasttrain launch`, and all below it by forks, in which `inject` has run."""
    words = ["launch", "--gpus=2", *options, "--", *lab.settings(run, ranks=2)]

    def before() -> None:
        fork_pythons()
        inject()

    return command(lab.folder / f"{run.name}.log", *words, before=before)


def put_away(launcher: Child) -> None:
    if not launcher.ended():
        os.kill(launcher.pid, signal.SIGKILL)
        launcher.wait()


def with_launcher(
    lab: Lab, name: str, harm: Callable[[int, list[int]], None], *options: str
) -> tuple[Path, int, str]:
    """Launch two ranks, do harm (given the launcher and the ranks) after the first checkpoint, wait
    for the end; nothing of it may be left."""
    run = lab.new_run(name)
    parent = launched(lab, run, *options)
    try:
        wait_for(reached(run, 32), 180)
        family = descendants(parent.pid)
        ranks = [pid for pid in family if not descendants(pid)]
        assert len(ranks) == 2
        harm(parent.pid, ranks)
        status = parent.wait()
    finally:
        put_away(parent)
    wait_for(lambda: not any(alive(pid) for pid in family), 10)
    return run, status, parent.said()


@fault(
    "launch",
    "SIGTERM to `fasttrain launch` of two ranks",
    "the ranks write a checkpoint, status 85, no process is left; " + SAME,
)
def sigterm_to_launch(lab: Lab) -> None:
    stop = lab.folder / "launch-term" / "stop"

    def harm(launch: int, ranks: list[int]) -> None:
        for pid in ranks:  # or they may have finished before the launcher has looked
            os.kill(pid, signal.SIGSTOP)
        os.kill(launch, signal.SIGTERM)
        wait_for(stop.exists)
        for pid in ranks:
            os.kill(pid, signal.SIGCONT)

    run, status, said = with_launcher(lab, "launch-term", harm)
    assert status == 85, said[-3000:]
    assert intact(run)[-1] < 96
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
    parent = launched(lab, run, inject=lambda: patch_step(lambda *_, **__: time.sleep(5)))
    family: list[int] = []
    try:
        wait_for(lambda: len(descendants(parent.pid)) >= 4, 120)
        family = descendants(parent.pid)  # DeepSpeed's runner, its starter of ranks, and they
        os.kill(family[1], signal.SIGKILL)
        status = parent.wait(60)
    finally:
        put_away(parent)
    said = parent.said()
    assert status == 75, said[-3000:]
    lines = [line for line in said.splitlines() if line.startswith("fasttrain: error: ")]
    assert len(lines) == 1, said
    assert lines[0].endswith(f"the last good checkpoint in {run} is of 64 images, not 96")
    wait_for(lambda: not any(alive(pid) for pid in family), 10)


def descendants(pid: int) -> list[int]:
    found = []
    for tasks in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):  # it has ended meanwhile
            for child in map(int, tasks.read_text().split()):
                found += [child, *descendants(child)]
    return found


def alive(pid: int) -> bool:
    """Whether the process is there, and is not a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
