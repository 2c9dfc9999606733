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
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fasttrain import checkpoint
from fasttrain.config import load_run_settings, to_yaml
from fasttrain.distributed import World
from fasttrain.errors import UserError
from fasttrain.metrics import Stats, collect, reset
from fasttrain.pictures import save_grid
from fasttrain.settings import RunSettings
from fasttrain_kernels import all_finite

__all__ = ["Run", "open_directory"]

MAY_CHANGE = {"run", "images", "micro_batch", "report_every", "sample", "checkpoint", "evaluate"}
MAY_CHANGE |= {"engine", "kernels", "data.path", "init"}
MAY_CHANGE |= {"memory_format", "recompute_norms", "compile"}
"""Settings that do not decide what an iteration computes, so a resumed run may change them."""

OURS = {"audit.json", "checkpoints", "config.yaml", "discriminator.json", "evaluation.json"}
OURS |= {"report.html", "samples"}
OURS |= {"stats.jsonl", "tensorboard"}
OURS |= {name + ".tmp" for name in OURS}
"""What a run directory may hold."""


Tensors = dict[str, dict[str, torch.Tensor]]
"""Part of the training state -> its named tensors."""


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
        world.on_main(lambda: open_directory(settings))
        self.start = world.on_main(lambda: checkpoint.newest(self.path / "checkpoints"))
        state = self.start.state if self.start else {}
        self.images: int = state.get("images", 0)
        self.iterations: int = state.get("iterations", 0)
        self.seconds_before: float = state.get("seconds", 0.0)
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
        reset()
        self.stats: Stats | None = None
        self.world.on_main(self._open_stats)
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

    def _open_stats(self) -> None:
        self.stats = Stats(self.path, self.images)

    def advance(self, images: int) -> None:
        """Count an iteration of `images` images, and do what is due after it."""
        before, self.images = self.images, self.images + images
        self.iterations += 1
        self.progress.update(self.bar, completed=self.images)
        last = self.images >= self.settings.images

        def due(every: int) -> bool:
            return last or (every > 0 and self.images // every > before // every)

        drawing = self.draw is not None and due(self.settings.sample.every)
        evaluating = self.evaluate is not None and due(self.settings.evaluate.every)
        # Each evaluation has its checkpoint, so that the best can be kept; and each checkpoint its
        # line, so that a resumed run's lines are those of one without a break.
        saving = due(self.settings.checkpoint.every) or evaluating
        tensors = {name: part.state_dict() for name, part in self.parts.items()} if saving else {}
        values: dict[str, float] = {}
        if saving or due(self.settings.report_every):
            values = collect(self.world)
            self._check_finite(values, tensors)
        if drawing:
            self.world.on_main(self._draw)
        if evaluating:
            assert self.evaluate is not None
            values |= self.world.on_main(self.evaluate)
        if values:
            self.world.on_main(lambda: self._report(values))
        if saving:
            self._save(tensors, values.get("fd"))

    def _check_finite(self, values: dict[str, float], tensors: Tensors) -> None:
        """Raise UserError on every rank when a number or a tensor about to be saved is not finite,
        so that no checkpoint is written of weights that have gone bad."""
        bad = [name for name, value in values.items() if not math.isfinite(value)]
        named = [item for part in tensors.values() for item in part.items()]
        if not all_finite([tensor for _, tensor in named]):
            bad += [name for name, tensor in named if not all_finite([tensor])]
        bad = [name for names in self.world.gather(bad) for name in names]
        if not bad:
            return
        kept = checkpoint.steps(self.path / "checkpoints")
        where = f"the last checkpoint is {kept[-1].path.name}" if kept else "no checkpoint yet"
        raise UserError(
            f"{bad[0]} is not finite at {self.images} images ({where}); "
            f"start another run=DIR with lower rates"
        )

    def _draw(self) -> None:
        assert self.draw is not None
        save_grid(self.draw(), self.path / "samples" / f"{self.images:010d}.png")

    def _report(self, values: dict[str, float]) -> None:
        assert self.stats is not None
        self.stats.write(self.images, values | {"seconds": round(self.seconds, 3)})
        line = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.progress.update(self.bar, line=line)
        if self.verbose:
            done = f"{self.images:>9,}/{self.settings.images:,} images"
            print(f"{self.path.name} {done} {self.seconds:7.1f} s  {line}", file=sys.stderr)

    def _save(self, tensors: Tensors, fd: float | None) -> None:
        assert self.cursor is not None
        cursor = _merge_cursors(self.world.gather(self.cursor.state_dict()))
        state = {
            "images": self.images,
            "iterations": self.iterations,
            "seconds": self.seconds,
            "data": cursor,
            "fd": fd,
        }

        def write() -> None:
            folder = self.path / "checkpoints"
            checkpoint.save(folder, self.images, tensors, state)
            checkpoint.prune(folder, self.settings.checkpoint.keep, self.images)

        self.world.on_main(write)


def open_directory(settings: RunSettings) -> None:
    """Make the run directory, or check that it belongs to these settings.

    Until the first checkpoint nothing in it is worth keeping, so its settings may be mended.
    Raises UserError, naming the first settings that differ, or why it cannot be written.
    """
    path = settings.run
    try:
        if checkpoint.steps(path / "checkpoints"):
            _same_settings(load_run_settings(path), settings)
        elif path.exists() and (not path.is_dir() or {p.name for p in path.iterdir()} - OURS):
            raise UserError(
                f"{path} exists and is not a run directory; choose another with run=DIR"
            )
        for folder in ("checkpoints", "samples"):
            (path / folder).mkdir(parents=True, exist_ok=True)
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
