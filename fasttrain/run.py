"""A run: its directory, where it stands, and what is due as images go by.

    run = Run(settings, world)                       # makes or re-opens the directory
    run.resume(stream, generator=engine, ema=ema)    # from the newest intact checkpoint, if any
    while run.images < settings.images:
        ...
        run.advance(settings.batch)                  # report, sample, evaluate, checkpoint

A run directory holds the resolved `config.yaml`, `stats.jsonl`, `tensorboard/`, `samples/*.png`,
`checkpoints/step-*/` and what the other commands add. The same command resumes it.
"""

from __future__ import annotations

import math
import sys
import time
import warnings
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fasttrain import checkpoint
from fasttrain.config import RunSettings, load_run_settings, to_yaml
from fasttrain.distributed import World
from fasttrain.errors import UserError
from fasttrain.metrics import Stats, collect
from fasttrain.pictures import save_grid

__all__ = ["Run", "open_directory"]

MAY_CHANGE = {"run", "images", "micro_batch", "report_every", "sample", "checkpoint", "evaluate"}
MAY_CHANGE |= {"engine", "kernels", "data.path", "init"}
"""Settings that do not decide what an iteration computes, so a resumed run may change them."""


class Stateful(Protocol):
    """A part of the training state with named tensors."""

    def state_dict(self) -> dict[str, torch.Tensor]: ...

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None: ...


class Cursor(Protocol):
    """The data stream's place."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Run:
    """One run directory, opened for training by every process of `world`.

    Raises UserError when the directory belongs to other settings or cannot be written.
    """

    def __init__(self, settings: RunSettings, world: World) -> None:
        self.settings = settings
        self.world = world
        self.path = settings.run
        error = None
        if world.is_main:
            try:
                open_directory(settings)
            except UserError as problem:
                error = str(problem)
        error = world.from_main(error)
        if error is not None:
            raise UserError(error)
        with warnings.catch_warnings(record=True) as skipped:
            warnings.simplefilter("always")
            self.start = checkpoint.newest(self.path / "checkpoints") if world.is_main else None
        for warning in skipped:
            print(f"warning: {warning.message}", file=sys.stderr)
        self.start = world.from_main(self.start)
        state = self.start.state if self.start else {}
        self.images: int = state.get("images", 0)
        self.iterations: int = state.get("iterations", 0)
        self.seconds_before: float = state.get("seconds", 0.0)
        self.fd: float | None = None
        self.parts: dict[str, Stateful] = {}
        self.cursor: Cursor | None = None
        self.draw: Callable[[], torch.Tensor] | None = None
        self.evaluate: Callable[[], dict[str, float]] | None = None

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, earlier sessions of this run included."""
        return self.seconds_before + time.monotonic() - self.began

    def resume(self, cursor: Cursor, **parts: Stateful) -> None:
        """Name the parts of the training state, and set them as the checkpoint has them."""
        self.cursor, self.parts = cursor, parts
        if self.start is None:
            return
        for name, part in parts.items():
            part.load_state_dict(self.start.tensors(name))
        cursor.load_state_dict(self.start.state["data"])

    def __enter__(self) -> Run:
        self.began = time.monotonic()
        self.stats = Stats(self.path, self.images) if self.world.is_main else None
        quiet = not self.world.is_main
        console = Console(stderr=True)
        self.verbose = self.world.is_main and not console.is_terminal
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:,}/{task.total:,} images"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[line]}"),
            console=console,
            disable=quiet or self.verbose,
            transient=True,
        )
        self.bar = self.progress.add_task(
            self.path.name, total=self.settings.images, completed=self.images, line=""
        )
        self.progress.start()
        if self.start is not None and self.world.is_main:
            print(f"{self.path}: resumed at {self.images:,} images", file=sys.stderr)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.progress.stop()
        if self.stats is not None:
            self.stats.close()
        if kind is KeyboardInterrupt and self.world.is_main:
            print(f"{self.path}: stopped; the same command resumes it", file=sys.stderr)

    def advance(self, images: int) -> None:
        """Count an iteration of `images` images, and do what is due after it."""
        before, self.images = self.images, self.images + images
        self.iterations += 1
        self.progress.update(self.bar, completed=self.images)
        last = self.images >= self.settings.images

        def due(every: int) -> bool:
            return last or (every > 0 and self.images // every > before // every)

        saving = due(self.settings.checkpoint.every)
        evaluated: dict[str, float] = {}
        if due(self.settings.sample.every) and self.draw is not None and self.world.is_main:
            save_grid(self.draw(), self.path / "samples" / f"{self.images:010d}.png")
        if self.evaluate is not None and due(self.settings.evaluate.every):
            evaluated = self.world.from_main(self.evaluate() if self.world.is_main else None)
            self.fd = evaluated["fd"]
        # A line before each checkpoint, so that a resumed run's lines are those of one without a
        # break, and no checkpoint is written of weights that have gone bad.
        if saving or due(self.settings.report_every) or evaluated:
            self._report(evaluated)
        if saving:
            self._save(evaluated)

    def _report(self, evaluated: dict[str, float]) -> None:
        values = collect(self.world) | evaluated
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        if bad:
            kept = checkpoint.steps(self.path / "checkpoints")
            where = f"the last checkpoint is {kept[-1].path.name}" if kept else "no checkpoint yet"
            raise UserError(
                f"{bad[0]} is not finite at {self.images} images ({where}); "
                "lower the learning rates"
            )
        if self.stats is None:
            return
        self.stats.write(self.images, values | {"seconds": round(self.seconds, 3)})
        line = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.progress.update(self.bar, line=line)
        if self.verbose:
            done = f"{self.images:>9,}/{self.settings.images:,} images"
            print(f"{self.path.name} {done} {self.seconds:7.1f} s  {line}", file=sys.stderr)

    def _save(self, evaluated: dict[str, float]) -> None:
        assert self.cursor is not None
        tensors = {name: part.state_dict() for name, part in self.parts.items()}
        cursor = _merge_cursors(self.world.gather(self.cursor.state_dict()))
        if self.world.is_main:
            state = {
                "images": self.images,
                "iterations": self.iterations,
                "seconds": self.seconds,
                "data": cursor,
                "fd": evaluated.get("fd"),
            }
            folder = self.path / "checkpoints"
            checkpoint.save(folder, self.images, tensors, state)
            checkpoint.prune(folder, self.settings.checkpoint.keep)
        self.world.barrier()


def open_directory(settings: RunSettings) -> None:
    """Make the run directory, or check that it belongs to these settings.

    Raises UserError, naming the first settings that differ, or why it cannot be written.
    """
    path = settings.run
    try:
        if (path / "config.yaml").is_file():
            _same_settings(load_run_settings(path), settings)
        elif path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(
                f"{path} exists and is not a run directory; choose another with run=DIR"
            )
        (path / "samples").mkdir(parents=True, exist_ok=True)
        (path / "checkpoints").mkdir(exist_ok=True)
        checkpoint.write_atomic(path / "config.yaml", to_yaml(settings))
    except OSError as error:
        raise UserError(f"cannot write the run directory {path}: {error.strerror}") from None


def _same_settings(old: RunSettings, new: RunSettings) -> None:
    before, after = _flat(old.model_dump(mode="json")), _flat(new.model_dump(mode="json"))
    changed = [
        f"{name} was {before.get(name)!r} and is {after.get(name)!r}"
        for name in sorted(before.keys() | after.keys())
        if before.get(name) != after.get(name)
        and not any(name == free or name.startswith(free + ".") for free in MAY_CHANGE)
    ]
    if changed:
        raise UserError(
            f"{new.run} was made with other settings: {'; '.join(changed[:3])}; "
            f"use those, or another directory with run=DIR"
        )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, name + ".")
        else:
            flat[name] = value
    return flat


def _merge_cursors(cursors: list[dict[str, Any]]) -> dict[str, Any]:
    """The cursors of all ranks' streams in one."""
    merged = dict(cursors[0])
    merged["streams"] = {k: v for cursor in cursors for k, v in cursor["streams"].items()}
    return merged
