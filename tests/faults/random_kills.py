"""SIGKILL at random moments: `python -m benchmarks.kills` does it 200 times, the matrix
a few."""

from __future__ import annotations

import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fasttrain.checkpoints.stats import read_stats
from tests.faults.child import Child
from tests.faults.lab import (
    BATCH,
    EVERY,
    IMAGES,
    KILLED,
    Lab,
    assert_same,
    fault,
    reached,
    stage_of,
    wait_for,
)

__all__ = ["CELLS", "Cell", "kill_at_random"]


@dataclass(frozen=True)
class Cell:
    """How a run is spread: processes, ZeRO stage; a stage of None is plain PyTorch."""

    ranks: int
    stage: int | None

    @property
    def overrides(self) -> list[str]:
        if self.stage is None:
            return []
        return [*stage_of(self.stage), "engine.kind=deepspeed"]


CELLS = [Cell(1, None), *(Cell(ranks, stage) for ranks in (1, 2) for stage in range(4))]


def unbroken(lab: Lab, cell: Cell) -> Path:
    """The run of a cell that nothing happens to, made once."""
    if cell == CELLS[0]:
        return lab.reference(1, 1)
    if cell.ranks == 2 and cell.stage is not None:
        return lab.reference(2, cell.stage)
    run = lab.folder / f"unbroken-deepspeed-{cell.stage}"
    if not run.exists():
        lab.train(run, *cell.overrides, expect=[0] * cell.ranks)
    return run


def kill_at_random(lab: Lab, cell: Cell, draw: random.Random) -> dict[str, Any]:
    """Kill a run of the cell, or one process of it, at a random moment, run the same command to the
    end, and compare; what was killed, when, and whether the others ended by themselves.

    The moment: an iteration that is waited for, and then a time in which about one more passes, so
    that each part of the run is hit as often on a machine of any speed.

    Raises AssertionError when the end is not that of the run that nothing happened to.
    """
    reference = unbroken(lab, cell)
    seconds = [line["seconds"] for line in read_stats(reference)]
    iteration = (seconds[-1] - seconds[0]) / (len(seconds) - 1)
    while True:
        after = draw.randrange(0, IMAGES, BATCH)
        delay = draw.uniform(0, iteration if after else 3.0)
        one = [[0]] if cell.ranks == 1 else [[0], [1]]
        victims = draw.choice([*one, list(range(cell.ranks))]) if after else list(range(cell.ranks))
        run = lab.new_run(f"random-{cell.ranks}-{cell.stage}")
        children = lab.start(run, *cell.overrides, ranks=cell.ranks)
        if after:
            wait_for(partial(come_to, children, run, after), 300)
        time.sleep(delay)
        for victim in victims:
            if not ended([children[victim]]):
                os.kill(children[victim].pid, signal.SIGKILL)
        found = [children[victim].wait() for victim in victims]
        if KILLED in found:
            break
        finish(children)  # it was faster than the signal: once more
    moment = moment_of(run)
    alone = finish(children)
    lab.train(run, *cell.overrides, expect=[0] * cell.ranks)
    assert_same(reference, run)
    return {**asdict(cell), "killed": victims, "moment": moment, "others_ended": alone}


def come_to(children: list[Child], run: Path, images: int) -> bool:
    return ended(children) or reached(run, images)()


def ended(children: list[Child]) -> bool:
    """Whether one of them has ended; a child's status is kept."""
    for child in children:
        if child.status is None:
            done, status = os.waitpid(child.pid, os.WNOHANG)
            if done:
                child.status = os.waitstatus_to_exitcode(status)
    return any(child.status is not None for child in children)


def finish(children: list[Child]) -> bool:
    """Wait for what is left of a run, a minute; whether nothing had to be killed."""
    until = time.monotonic() + 60
    while time.monotonic() < until and not all(ended([child]) for child in children):
        time.sleep(0.02)
    left = [child for child in children if child.status is None]
    for child in left:
        with suppress(ProcessLookupError):
            os.kill(child.pid, signal.SIGKILL)
        child.wait()
    return not left


def moment_of(run: Path) -> str:
    """What a killed run had come to."""
    folder = run / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    if any(name.endswith(".tmp") for name in names):
        return "in a checkpoint"
    if f"step-{IMAGES:010d}" in names:
        return "after the last checkpoint"
    if names:
        return "between checkpoints"
    lines = any(line["images"] < EVERY for line in read_stats(run))
    return "before the first checkpoint" if lines else "in the start"


@fault(
    "SIGKILL",
    "at three random moments, one rank and two",
    "each time the same command ends bit-identical to an unbroken run",
)
def at_random_moments(lab: Lab) -> None:
    draw = random.Random(16)
    for cell in (CELLS[0], CELLS[0], Cell(2, 1)):
        kill_at_random(lab, cell, draw)
