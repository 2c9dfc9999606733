"""A run: where it stands, and what is due as images go by.

    with closing(Run(settings, world)) as run:           # makes or re-opens the directory
        run.resume(stream, generator=engine, ema=ema)    # from the newest intact checkpoint, if any
        with run:
            while run.images < settings.images:
                batch = run.read(stream)         # on every process, or on none
                if not engine.step():
                    run.skip("generator")                # counted; too many, and it goes back
                run.advance(settings.batch)              # report, sample, evaluate, checkpoint

The same command resumes it. `fasttrain.run_directory` says what the directory holds.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Protocol, runtime_checkable

import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from fasttrain import checkpoint
from fasttrain.average import Average
from fasttrain.checkpoint import Step
from fasttrain.data import Batch, ImageStream
from fasttrain.distributed import World
from fasttrain.errors import Stopped, UserError
from fasttrain.evaluation.protocol import HIGHER_IS_BETTER
from fasttrain.metrics import Stats, collect, report, reset
from fasttrain.pictures import save_grid
from fasttrain.run_directory import Lock, open_directory
from fasttrain.settings import RunSettings
from fasttrain.signals import StopSignals
from fasttrain_kernels import all_finite

__all__ = ["Run"]

Tensors = dict[str, dict[str, torch.Tensor]]
"""Part of the training state -> its named tensors."""


class Stateful(Protocol):
    """A part of the training state with named tensors."""

    def state_dict(self) -> dict[str, torch.Tensor]: ...

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None: ...


@runtime_checkable
class Measured(Protocol):
    """A part of the training state whose memory is worth a line in `memory.json`."""

    def held(self) -> Any:
        """Bytes on this process."""


class Cursor(Protocol):
    """The data stream's place."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Run:
    """One run directory, opened for training by every process of `world`.

    Attributes:
        images, iterations: done so far.
        start: the checkpoint that it goes on from, or None.
        average: the averaged model, drawn and evaluated as images go by; without, nothing is.
        base: what `state.json` says of the model that fine-tuning began with.

    Raises UserError when the directory belongs to other settings, is in use or cannot be written.
    """

    def __init__(self, settings: RunSettings, world: World) -> None:
        self.settings = settings
        self.world = world
        self.path = settings.run
        self.lock: Lock | None = None
        world.on_main(self._open)
        self.start = world.on_main(lambda: checkpoint.newest(self.path / "checkpoints"))
        self.base: dict[str, Any] | None = None
        self.parts: dict[str, Stateful] = {}
        self.cursor: Cursor | None = None
        self.average: Average | None = None
        self.memory_written = False
        self.counts: Counter[str] = Counter()
        self.bad, self.bad_in_a_row = False, 0
        self.waiting: set[str] = set()
        self.warned: set[str] = set()
        self.rolled_back = Counter[int]()
        self._stand_at(self.start.state if self.start else {})

    def _open(self) -> None:
        open_directory(self.settings)
        self.lock = Lock(self.path)
        checkpoint.tidy(self.path / "checkpoints")

    def _stand_at(self, state: Mapping[str, Any]) -> None:
        self.images: int = state.get("images", 0)
        self.iterations: int = state.get("iterations", 0)
        self.seconds_before: float = state.get("seconds", 0.0)
        self.rollbacks: int = state.get("rollbacks", 0)
        self.saved_at = self.reported_at = self.images

    def close(self) -> None:
        """Let another command have the directory."""
        if self.lock is not None:
            self.lock.release()

    @property
    def seconds(self) -> float:
        """Wall-clock seconds of training, earlier sessions of this run included."""
        return self.seconds_before + time.monotonic() - self.began

    @property
    def seed(self) -> int:
        """Of every draw of the loop; another one after each time that the run had to go back."""
        return (self.settings.seed + self.rollbacks * 0x9E3779B97F4A7C15) % 2**63

    def resume(self, cursor: Cursor, average: Average | None = None, **parts: Stateful) -> None:
        """Name the parts of the training state, and set them as the checkpoint has them."""
        self.cursor, self.average, self.parts = cursor, average, parts
        if self.start is not None:
            self._load(self.start)
            cursor.load_state_dict(self.start.state["data"])

    def _load(self, step: Step) -> None:
        for name, part in self.parts.items():
            part.load_state_dict(step.tensors(name))

    def __enter__(self) -> Run:
        self.began = self.last_report = time.monotonic()
        self.waited = 0.0
        reset()
        self.signals = StopSignals()
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
        if self.start is not None:
            self._say(f"resumed at {self.images:,} images")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.signals.restore()
        self.progress.stop()
        if self.stats is not None:
            self.stats.close()
        if kind is KeyboardInterrupt:
            self._say("stopped; the same command resumes it")

    def _say(self, line: str) -> None:
        if self.world.is_main:
            print(f"{self.path}: {line}", file=sys.stderr)

    def _open_stats(self) -> None:
        self.stats = Stats(self.path, self.images)

    def every(self, interval: int | None) -> bool:
        """Whether something that is done each `interval` iterations is due, not at the first."""
        return bool(interval and self.iterations and self.iterations % interval == 0)

    def step(self, engine: Any, name: str) -> bool:
        """An optimizer step at the rate for the images that this iteration ends with."""
        engine.set_progress(self.images + self.settings.batch)
        applied: bool = engine.step()
        if not applied:
            self.skip(name)
        report(f"gradient/{name}", engine.norm)
        return applied

    def skip(self, name: str) -> None:
        """Count a step of this iteration that was not applied, on any process."""
        self.counts[f"skipped/{name}"] += 1
        self.bad = True

    def read(self, stream: ImageStream) -> Batch:
        """The next batch: this process's share, when every process could read its own.

        Raises UserError, after a checkpoint from which the same images come again, when one could
        not or when all together had to pass over more images than `data.max_skipped`.
        """
        began = time.monotonic()
        batch, problem, before = None, "", stream.skipped
        try:
            batch = next(stream)
        except UserError as error:
            problem = str(error)
        self.waited += time.monotonic() - began
        counts = [stream.skipped, stream.skipped - before, float(bool(problem))]
        # Alone, no tensor goes to the GPU, for reading it back would wait for all that runs there.
        device = self.world.device if self.world.size > 1 else "cpu"
        totals = torch.tensor(counts, dtype=torch.float64, device=device)
        skipped, new, failed = self.world.sum(totals).tolist()
        limit = self.settings.data.max_skipped
        if failed or (new and skipped > limit):
            told = self.world.gather((problem, "".join(stream.faults[-1:])))
            why = next(why for whys in zip(*told, strict=True) for why in whys if why)
            if not failed:
                why += f" (images that cannot be read, over all processes: {skipped:.0f})"
            if batch is not None:
                stream.give_back()
            if self.saved_at != self.images:
                self._do({"save"} if self.reported_at == self.images else {"save", "report"})
            raise UserError(
                f"{why}; mend it or raise data.max_skipped={limit}, and the same command goes on "
                "where it stopped"
            )
        if new:
            self.counts["skipped/images"] += int(new)
            for fault in dict.fromkeys(stream.faults):
                if fault not in self.warned:
                    print(f"{self.path}: warning: skipped: {fault}", file=sys.stderr)
            self.warned.update(stream.faults)
            stream.faults.clear()
        assert batch is not None
        return batch

    def advance(self, images: int) -> None:
        """Count an iteration of `images` images, and do what is due after it.

        Raises Stopped, after a checkpoint, when any process was asked to stop.
        """
        before, self.images = self.images, self.images + images
        self.iterations += 1
        self.progress.update(self.bar, completed=self.images)
        self.bad_in_a_row = self.bad_in_a_row + 1 if self.bad else 0
        self.bad = False
        if self.bad_in_a_row >= self.settings.bad_steps.in_a_row:
            self._go_back(f"losses or gradients of {self.bad_in_a_row} iterations in a row")
            return
        last = self.images >= self.settings.images
        stopping = self._asked_to_stop() and not last

        def due(every: int) -> bool:
            return last or (every > 0 and self.images // every > before // every)

        for work, every in self.intervals.items():
            if due(every):
                self.waiting.add(work)
        # A model that no step can be taken from is not worth keeping: what is due waits.
        now = set(self.waiting) if not self.bad_in_a_row or last or stopping else set()
        self.waiting -= now
        # Each evaluation has its checkpoint, so that the best can be kept; and each checkpoint its
        # line, so that a resumed run's lines are those of one without a break.
        if stopping or "evaluate" in now:
            now.add("save")
        if due(self.settings.report_every) or "save" in now:
            now.add("report")
        self._do(now)
        if stopping:
            raise Stopped(
                f"{self.path}: stopped at {self.images:,} images; the same command resumes it"
            )

    @property
    def intervals(self) -> dict[str, int]:
        """Images after which each kind of work is due again, but for reports."""
        intervals = {"save": self.settings.checkpoint.every}
        if self.average is not None:
            intervals["draw"] = self.settings.sample.every
        if self.average is not None and self.average.evaluator is not None:
            intervals["evaluate"] = self.settings.evaluate.every
        return intervals

    def _do(self, now: set[str]) -> None:
        """What is due of `report`, `draw`, `evaluate` and `save`."""
        saving = "save" in now
        tensors = {name: part.state_dict() for name, part in self.parts.items()} if saving else {}
        bad = self._not_finite(tensors)
        if bad:
            self._go_back(bad)
            return
        values: dict[str, float] = {}
        if "report" in now:
            values = collect(self.world)
            values |= {name: float(count) for name, count in self.counts.items()}
            self.counts.clear()
            values |= self._waiting()
            self._write_memory()
        average = self.average
        network = average.network() if average and now & {"draw", "evaluate"} else None
        if average and "draw" in now:
            picture = self.path / "samples" / f"{self.images:010d}.png"
            self.world.on_main(lambda: save_grid(average.draw(network), picture))
        evaluation: dict[str, Any] | None = None
        if average and "evaluate" in now:
            measured = average.evaluate(network)
            evaluation = self._judged(measured)
            values |= measured
        if values:
            self.world.on_main(lambda: self._report(values))
            self.reported_at = self.images
        if saving:
            self._save(tensors, evaluation)

    def _judged(self, values: dict[str, float]) -> dict[str, Any]:
        """What a checkpoint says of its evaluation; the best has the lowest score."""
        metric = self.settings.evaluate.metric
        score = -values[metric] if metric in HIGHER_IS_BETTER else values[metric]
        assert self.average is not None
        assert self.average.evaluator is not None
        protocol = self.world.on_main(self.average.evaluator.protocol)
        return {"metric": metric, "score": score, "values": values, "protocol": protocol}

    def _waiting(self) -> dict[str, float]:
        """The share of the time since the last report that went by in `read`, over all ranks."""
        now = time.monotonic()
        times = torch.tensor([self.waited, now - self.last_report], device=self.world.device)
        waited, passed = self.world.sum(times).tolist()
        self.waited, self.last_report = 0.0, now
        return {"data/waiting": round(waited / passed, 4)} if passed else {}

    def _write_memory(self) -> None:
        if self.memory_written:
            return
        self.memory_written = True
        held = {n: part.held() for n, part in self.parts.items() if isinstance(part, Measured)}
        ranks = self.world.gather(held)
        as_json = json.dumps(ranks, indent=1)
        self.world.on_main(lambda: checkpoint.write_atomic(self.path / "memory.json", as_json))

    def _asked_to_stop(self) -> bool:
        asked = self.signals.asked or (self.lock is not None and self.lock.asked_to_stop())
        return self.world.any(asked)

    def _not_finite(self, tensors: Tensors) -> str:
        """The first tensor about to be saved that is not finite, or an empty string, on every rank:
        so that no checkpoint is written of weights that have gone bad."""
        if not tensors:
            return ""
        named = [item for part in tensors.values() for item in part.items()]
        bad = ""
        if not all_finite([tensor for _, tensor in named]):
            bad = next(name for name, tensor in named if not all_finite([tensor]))
        return str(self.world.from_main(bad))

    def _go_back(self, what: str) -> None:
        """To the newest checkpoint, and on from there with other images and draws.

        Raises UserError when there is none, or when that has been tried often enough.
        """
        assert self.cursor is not None
        found = f"{what} not finite at {self.images:,} images"
        step = self.world.on_main(lambda: checkpoint.newest(self.path / "checkpoints"))
        if step is None:
            raise UserError(
                f"{found}, before the first checkpoint; start another run=DIR with lower rates"
            )
        self.rolled_back[step.images] += 1
        if self.rolled_back[step.images] > self.settings.bad_steps.rollbacks:
            raise UserError(
                f"{found}, also after going back to {step.path.name} "
                f"{self.settings.bad_steps.rollbacks} times; it is intact: start another run=DIR "
                f"with lower rates"
            )
        rollbacks = self.rollbacks + 1
        self._say(f"warning: {found}; going back to {step.path.name}, with images in another order")
        seconds = self.seconds
        self._load(step)
        self._stand_at(step.state)
        self.seconds_before, self.began = seconds, time.monotonic()
        self.rollbacks = rollbacks
        self.cursor.load_state_dict(fresh_order(step.state["data"], self.seed))
        self.bad_in_a_row = 0
        self.waiting.clear()
        self.counts = Counter({"rollbacks": 1})
        reset()
        if self.stats is not None:
            self.stats.close()
        self.world.on_main(self._open_stats)

    def _report(self, values: dict[str, float]) -> None:
        assert self.stats is not None
        self.stats.write(self.images, values | {"seconds": round(self.seconds, 3)})
        line = "  ".join(f"{name} {value:.4g}" for name, value in values.items())
        self.progress.update(self.bar, line=line)
        if self.verbose:
            done = f"{self.images:>9,}/{self.settings.images:,} images"
            print(f"{self.path.name} {done} {self.seconds:7.1f} s  {line}", file=sys.stderr)

    def _save(self, tensors: Tensors, evaluation: dict[str, Any] | None) -> None:
        assert self.cursor is not None
        self.saved_at = self.images
        cursor = _merge_cursors(self.world.gather(self.cursor.state_dict()))
        state = {
            "images": self.images,
            "iterations": self.iterations,
            "seconds": self.seconds,
            "rollbacks": self.rollbacks,
            "data": cursor,
            "base": self.base,
            "evaluation": evaluation,
        }

        def write() -> None:
            folder = self.path / "checkpoints"
            checkpoint.save(folder, self.images, tensors, state)
            checkpoint.prune(folder, self.settings.checkpoint.keep, self.images)

        self.world.on_main(write)


def fresh_order(cursor: Mapping[str, Any], seed: int) -> dict[str, Any]:
    """A merged cursor from which the same data come in another order: all streams begin the epoch
    that none of them has begun."""
    epoch = 1 + max(place["epoch"] for place in cursor["streams"].values())
    streams = {
        name: {**place, "epoch": epoch, "position": 0} for name, place in cursor["streams"].items()
    }
    return {**cursor, "seed": seed, "streams": streams}


def _merge_cursors(cursors: list[dict[str, Any]]) -> dict[str, Any]:
    """The cursors of all ranks' streams in one."""
    merged = dict(cursors[0])
    merged["streams"] = {k: v for cursor in cursors for k, v in cursor["streams"].items()}
    return merged
