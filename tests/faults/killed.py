"""SIGKILL at exact points: the same command again ends bit-identical to a run left alone."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import Stats
from fasttrain.system import tensors
from tests.faults.lab import KILLED, Lab, fault, intact, nth, patch, patch_step, stage_of

SAME = "the same command ends bit-identical to an unbroken run"


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed_at(lab: Lab, name: str, inject: Callable[[], None], kept: list[int]) -> None:
    """Killed there, the run holds these checkpoints, and goes on as if nothing had been."""
    run = lab.new_run(name)
    lab.train(run, inject=inject, expect=[KILLED])
    assert intact(run) == kept
    lab.assert_ends_like_unbroken(run)
    assert not list((run / "checkpoints").glob("*.tmp"))


@fault("SIGKILL", "in the first iteration", SAME)
def before_the_first_checkpoint(lab: Lab) -> None:
    killed_at(lab, "first", lambda: patch_step(nth(1, kill)), [])


@fault("SIGKILL", "while the base model is written into the run directory", SAME)
def while_the_base_is_written(lab: Lab) -> None:
    killed_at(lab, "base", lambda: patch(tensors, "sync", nth(2, kill)), [])


@fault("SIGKILL", "between the generator's step and the discriminator's", SAME)
def between_two_steps(lab: Lab) -> None:
    killed_at(lab, "between", lambda: patch_step(nth(4, kill)), [32])


@fault("SIGKILL", "between the generator's and the discriminator's file of a checkpoint", SAME)
def between_two_files(lab: Lab) -> None:
    # The base model is the first file, each checkpoint has four.
    killed_at(lab, "files", lambda: patch(checkpoint, "save_tensors", nth(7, kill)), [32])


@fault("SIGKILL", "after a checkpoint's files, before its manifest", SAME)
def before_the_manifest(lab: Lab) -> None:
    def at_last(path: Path) -> None:
        if (path.parent.name, path.name) == ("step-0000000064.tmp", "state.json"):
            kill()

    killed_at(lab, "manifest", lambda: patch(checkpoint, "sha256", at_last), [32])


@fault("SIGKILL", "while a checkpoint's files are synced to disk", SAME)
def while_syncing(lab: Lab) -> None:
    def at_second(path: Path) -> None:
        if path.parent.name == "step-0000000064.tmp":
            kill()

    killed_at(lab, "sync", lambda: patch(checkpoint, "sync", at_second), [32])


def at_rename(target: str, act: Callable[[], None], *, after: bool) -> Callable[[], None]:
    def inject() -> None:
        original = Path.rename

        def rename(self: Path, to: Any) -> Path:
            hit = Path(to).name == target
            if hit and not after:
                act()
            moved = original(self, to)
            if hit and after:
                act()
            return moved

        Path.rename = rename  # type: ignore[method-assign]

    return inject


@fault("SIGKILL", "just before the rename that makes a checkpoint", SAME)
def before_the_rename(lab: Lab) -> None:
    killed_at(lab, "rename", at_rename("step-0000000064", kill, after=False), [32])


@fault("SIGKILL", "just after that rename", SAME)
def after_the_rename(lab: Lab) -> None:
    killed_at(lab, "renamed", at_rename("step-0000000064", kill, after=True), [32, 64])


@fault("SIGKILL", "while an old checkpoint is deleted", SAME)
def while_pruning(lab: Lab) -> None:
    def inject() -> None:
        def at_old(path: Any, *_: Any, **__: Any) -> None:
            old = Path(path)
            if old.name.endswith(".old.tmp") and old.exists():
                kill()

        patch(shutil, "rmtree", at_old)

    killed_at(lab, "prune", inject, [64, 96])


@fault("SIGKILL", "in the middle of a line of stats.jsonl", SAME)
def in_a_stats_line(lab: Lab) -> None:
    def inject() -> None:
        def half_a_line(stats: Stats, images: int, values: dict[str, float]) -> None:
            if images == 80:
                stats.file.write('{"images": 80, "loss/gen')
                stats.file.flush()
                kill()

        patch(Stats, "write", half_a_line)

    killed_at(lab, "line", inject, [32, 64])


def one_of_two(lab: Lab, stage: int) -> None:
    """Rank 1 is killed while rank 0 writes: rank 0 ends by itself, and nothing is lost."""
    run = lab.new_run(f"one-of-two-{stage}")
    inject = lambda: patch_step(nth(4, kill))  # noqa: E731
    said = lab.train(run, *stage_of(stage), inject=inject, on=[1], expect=[75, KILLED])
    assert "rank 0 has lost contact with another process" in said
    assert "Traceback" not in said
    assert intact(run) == [32]
    lab.assert_ends_like_unbroken(run, ranks=2, stage=stage)


def both_in_the_checkpoint(lab: Lab, stage: int) -> None:
    """Rank 0 is killed between two files of a checkpoint that both ranks gather."""
    run = lab.new_run(f"both-{stage}")

    def inject() -> None:
        patch(checkpoint, "save_tensors", nth(7, kill))

    said = lab.train(run, *stage_of(stage), inject=inject, on=[0], expect=[KILLED, 75])
    assert "rank 1 has lost contact" in said
    assert intact(run) == [32]
    lab.assert_ends_like_unbroken(run, ranks=2, stage=stage)


for _stage in range(4):

    def _one(lab: Lab, stage: int = _stage) -> None:
        one_of_two(lab, stage)

    def _both(lab: Lab, stage: int = _stage) -> None:
        both_in_the_checkpoint(lab, stage)

    _one.__name__, _both.__name__ = f"rank_1_at_zero_{_stage}", f"rank_0_writing_at_zero_{_stage}"
    ends = f"rank 0 ends with status 75; {SAME} of two ranks"
    fault("SIGKILL", f"of rank 1 of two, between two steps, ZeRO {_stage}", ends)(_one)
    ends = f"rank 1 ends with status 75; {SAME} of two ranks"
    fault("SIGKILL", f"of rank 0 of two, between a checkpoint's files, ZeRO {_stage}", ends)(_both)
