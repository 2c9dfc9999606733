"""Where faults happen for real: forked `fasttrain` processes that are killed, frozen or starved at
an exact point, on a small real run (digits, a pre-trained diffusion model, six iterations).

A fault is a function that breaks something and asserts what survived; `@fault` gives it its row in
the matrix: the group, what was done, what must survive.

    @fault("killed", "SIGKILL just before the rename", "resumes, bit-identical at the end")
    def before_rename(lab: Lab) -> None:
        lab.train("run", inject=kill_at(Path, "rename"), expect=[KILLED])
        lab.assert_ends_like_unbroken("run")

Children are forked from a process that has imported everything, so a run costs a second or two;
what is injected is patched in the child alone, and the command in it is the one that users type.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import TIMES, read_stats
from fasttrain.discriminator.class_means import store_class_features
from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start
from fasttrain.training.pretrain import pretrain
from fasttrain_data import convert
from tests.faults.child import Child, command, free_port
from tests.tiny import DISCRIMINATOR, FLOAT32, ONE_LEVEL

__all__ = ["FAULTS", "KILLED", "PARTS", "Fault", "Lab", "fault", "nth", "patch", "slowly"]

KILLED = -signal.SIGKILL
IMAGES, BATCH, EVERY = 96, 16, 32
PARTS = ("generator", "discriminator", "ema", "projector")
SHARD_ALL = "engine.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"

Inject = Callable[[], None]


@dataclass(frozen=True)
class Fault:
    group: str
    done: str
    survives: str
    act: Callable[[Lab], None]

    @property
    def name(self) -> str:
        return self.act.__name__


FAULTS: list[Fault] = []


def fault(group: str, done: str, survives: str) -> Callable[[Callable[[Lab], None]], Any]:
    """Put a function into the matrix."""

    def add(act: Callable[[Lab], None]) -> Callable[[Lab], None]:
        FAULTS.append(Fault(group, done, survives, act))
        return act

    return add


def patch(owner: Any, name: str, before: Callable[..., None]) -> None:
    """From now on, in this process, `before` runs ahead of each call of `owner.name`."""
    original = getattr(owner, name)

    def patched(*args: Any, **kwargs: Any) -> Any:
        before(*args, **kwargs)
        return original(*args, **kwargs)

    setattr(owner, name, patched)


def nth(count: int, act: Callable[[], None]) -> Callable[..., None]:
    """A function that acts when it is called for the `count`-th time."""
    calls = 0

    def counted(*_: Any, **__: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            act()

    return counted


class Lab:
    """A folder with real data and a base model, and the runs that faults are done to."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data, self.base = folder / "digits", folder / "digits-edm"
        self.unbroken: dict[tuple[int, int], Path] = {}
        convert("digits", self.data)
        changes = [f"run={self.base}", f"data.path={self.data}", "images=1280", *ONE_LEVEL]
        changes += [*FLOAT32[:1], "batch=64", "checkpoint.every=1280", "ema.half_life=500"]
        pretrain(load_settings("digits-edm", changes, PretrainSettings), start())
        store_class_features(self.data, 32, torch.device("cpu"))  # once, not in every run

    def settings(self, run: Path, *overrides: str, ranks: int = 1) -> list[str]:
        """The command line's arguments for a run. Only one process measures its result in the end:
        that several do it together is tested elsewhere, and would be a fifth of their time."""
        return [
            "finetune",
            "digits-d2o-f",
            f"data.path={self.data}",
            f"init={self.base}",
            *ONE_LEVEL,
            f"batch={BATCH}",
            f"images={IMAGES}",
            "discriminator.norm_group=8",
            *DISCRIMINATOR,
            *FLOAT32,
            f"report_every={BATCH}",
            f"checkpoint.every={EVERY}",
            "r1.interval=2",
            "evaluate={samples: 8, components: null}",  # no eigenvectors of 1280 features
            "sample.count=4",
            f"run={run}",
            *(["evaluate.every=null"] if ranks > 1 else []),
            *overrides,
        ]

    def start(
        self,
        run: Path,
        *overrides: str,
        ranks: int = 1,
        inject: Inject | None = None,
        on: Sequence[int] = (0, 1),
    ) -> list[Child]:
        """Fork the command once for each rank; `inject` runs first in those of `on`."""
        port = free_port()
        return [
            command(
                self.folder / f"{run.name}-{rank}.log",
                *self.settings(run, *overrides, ranks=ranks),
                rank=rank,
                ranks=ranks,
                port=port,
                before=inject if inject is not None and rank in on else lambda: None,
            )
            for rank in range(ranks)
        ]

    def train(
        self, run: Path, *overrides: str, expect: Sequence[int] = (0,), **options: Any
    ) -> str:
        """Run the command on len(expect) ranks to its end; what the ranks said.

        Raises AssertionError when a rank ends with another status than expected.
        """
        children = self.start(run, *overrides, ranks=len(expect), **options)
        found = [child.wait() for child in children]
        said = "\n".join(child.said() for child in children)
        assert found == list(expect), f"ended with {found}, not {list(expect)}:\n{said[-3000:]}"
        return said

    def new_run(self, name: str) -> Path:
        run = self.folder / name
        shutil.rmtree(run, ignore_errors=True)
        return run

    def half_done(self, name: str) -> Path:
        """A copy of a run that was stopped after its second checkpoint of three."""
        source = self.folder / "half-done"
        if not source.exists():
            kill = nth(5, lambda: os.kill(os.getpid(), signal.SIGKILL))
            self.train(source, inject=lambda: patch_step(kill), expect=[KILLED])
        run = self.new_run(name)
        shutil.copytree(source, run)
        assert [step.images for step in checkpoint.steps(run / "checkpoints")] == [32, 64]
        return run

    def reference(self, ranks: int, stage: int) -> Path:
        """The run that nothing happened to."""
        if (ranks, stage) not in self.unbroken:
            run = self.new_run(f"unbroken-{ranks}-{stage}")
            self.train(run, *stage_of(stage), expect=[0] * ranks)
            self.unbroken[ranks, stage] = run
        return self.unbroken[ranks, stage]

    def assert_ends_like_unbroken(self, run: Path, *, ranks: int = 1, stage: int = 1) -> str:
        """The same command again ends with the same tensors, bit for bit, the same data cursor and
        the same lines as the run that nothing happened to; what the command said."""
        said = self.train(run, *stage_of(stage), expect=[0] * ranks)
        assert_same(self.reference(ranks, stage), run)
        return said


def assert_same(one: Path, other: Path, *, but: str = "") -> None:
    """Two finished runs hold the same bits and tell the same, `but` for one number."""
    ours, theirs = (checkpoint.find(run / "checkpoints") for run in (one, other))
    assert ours.images == theirs.images == IMAGES
    for name in PARTS:
        a, b = ours.tensors(name), theirs.tensors(name)
        assert a.keys() == b.keys()
        different = [key for key in a if not torch.equal(a[key], b[key])]
        assert not different, f"{name}: {different[0]} differs"
    assert ours.state["data"] == theirs.state["data"]
    for line, expected in zip(lines(one), lines(other), strict=True):
        assert {**line, but: 0} == {**expected, but: 0}


def lines(run: Path) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if k not in TIMES} for line in read_stats(run)]


def stage_of(stage: int) -> list[str]:
    return [f"engine.zero_stage={stage}", *([SHARD_ALL] if stage == 3 else [])]


def patch_step(act: Callable[..., None]) -> None:
    """`act` runs ahead of each discriminator step's loss: between the two steps of an iteration."""
    from fasttrain.training.objectives import gan as objectives

    patch(objectives, "discriminator_loss", act)


def slowly() -> None:
    """Iterations that wait, so that what another process does in the middle of a run is in time."""
    patch_step(lambda *_, **__: time.sleep(0.1))


def wait_for(condition: Callable[[], bool], seconds: float = 180) -> None:
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "what was waited for did not come"
        time.sleep(0.01)


def reached(run: Path, images: int) -> Callable[[], bool]:
    return lambda: any(line["images"] >= images for line in read_stats(run))


def intact(run: Path) -> list[int]:
    """Images of the run's intact checkpoints."""
    return [s.images for s in checkpoint.steps(run / "checkpoints") if s.damage() is None]


def last_line(run: Path) -> dict[str, Any]:
    return json.loads((run / "stats.jsonl").read_text().splitlines()[-1])
