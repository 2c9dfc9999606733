"""A run: its progress, and the work that is due after each number of images.

    with closing(Run(settings, world)) as run:           # makes or re-opens the directory
        run.resume(stream, average, generator=engine)    # from the newest intact checkpoint, if any
        with run:
            while not run.ended:
                batch = run.read(stream)                 # on every process, or on none
                run.step(engine, "generator")            # counts skipped ones
                run.advance(settings.batch)              # statistics, grids, checkpoints, rollback

The same command resumes it. `fasttrain.checkpoints.directory` describes the directory.
"""

from __future__ import annotations

import sys
from collections.abc import Collection
from functools import partial
from types import TracebackType
from typing import Any

from fasttrain.checkpoints import checkpoint
from fasttrain.data import Batch, ImageStream
from fasttrain.models.latents import scaling
from fasttrain.settings import RunSettings
from fasttrain.system.errors import Stopped, Unavailable, UserError
from fasttrain.system.processes import World
from fasttrain.system.signals import StopSignals, ignore_stop
from fasttrain.system.switches import tune_convolutions
from fasttrain.training.average import Average
from fasttrain.training.latents import drawn
from fasttrain.training.run.opened import Opened
from fasttrain.training.run.progress import Progress, say
from fasttrain.training.run.reading import Reading
from fasttrain.training.run.recovery import BadSteps, not_finite
from fasttrain.training.run.schedule import Schedule
from fasttrain.training.run.state import Cursor, Stateful, Tensors, TrainingState
from fasttrain.training.run.window import Window
from fasttrain.training.run.words import ending, interrupted, opening

__all__ = ["Run"]


class Run(Opened):
    """One run, trained by every process of `world`.

    Attributes:
        images, iterations: done so far.
        average: the averaged model, which is drawn and evaluated during training; None: neither.
        base: entries of `state.json` about the model that fine-tuning began with.
        precision: the dtype that a measurement chose for `precision: auto`, or None.
    """

    def __init__(self, settings: RunSettings, world: World) -> None:
        super().__init__(settings, world)
        self.base: dict[str, Any] | None = None
        self.precision: str | None = None
        self.state: TrainingState | None = None
        self.average: Average | None = None
        self.schedule, self.bad_steps = Schedule(settings), BadSteps(settings)
        self.reading = Reading(settings, world, self.asked_to_stop)
        self.window = Window(settings, world, self.reading)

    def resume(self, cursor: Cursor, average: Average | None = None, **parts: Stateful) -> None:
        """Register the parts of the training state, and load them from the checkpoint."""
        self.state, self.average = TrainingState(cursor, parts, self.world), average
        if self.start is not None:
            self.state.load(self.start)

    def __enter__(self) -> Run:
        self.window.restart()
        tune_convolutions(self.settings.tune_convolutions, self.world.device)
        self.signals = StopSignals()
        for line in opening(self.settings, self.world, self.precision):
            say(self.settings, self.world, line)
        if self.start is not None and not self.ended:
            origin = self.branch
            how = "resumed"
            if origin and origin["images"] == self.images:
                how = f"branched from {origin['run']}"
            say(self.settings, self.world, f"{how} at {self.images:,} images")
        for change in self.changed:
            say(self.settings, self.world, f"{change} from {self.images:,} images on")
        before = self.start.state.get("seconds", 0.0) if self.start else 0.0
        self.progress = Progress(self.settings, self.world, self.images, before)
        self._do_owed()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        tune_convolutions(False, self.world.device)
        if kind in (None, KeyboardInterrupt) or self.world.size == 1:
            self.signals.restore()
        else:
            ignore_stop()
        self.progress.close()
        if kind is KeyboardInterrupt:
            newest = checkpoint.newest(self.path / "checkpoints") if self.world.is_main else None
            say(self.settings, self.world, interrupted(newest.images if newest else None))
        elif kind is None:
            for line in ending(self.settings, self.images, self.stop_rule):
                say(self.settings, self.world, line)

    def tried(self, name: str, applied: bool) -> None:
        """Count a step of this iteration, which every process applied or none."""
        if not applied:
            self.window.count(f"skipped/{name}")
        self.bad_steps.note(name, applied)

    def read(self, stream: ImageStream) -> Batch:
        """This process's part of the next batch, if every process could read its own.

        Raises the errors of `Reading.read`, after a checkpoint that resumes with the same images.
        """
        try:
            batch, skipped = self.reading.read(stream)
        except (UserError, Unavailable, Stopped) as error:
            if self.saved_at != self.images:
                now = {"save"} if self.reported_at == self.images else {"save", "report"}
                if isinstance(error, Stopped):
                    now |= self.schedule.waiting
                self._do(now)
            raise self.stopped() if isinstance(error, Stopped) else error from None
        if skipped:
            self.window.count("skipped/images", skipped)
        info, wanted = stream.manifest.latents, self.settings.latents
        if info is None or wanted is None:
            return batch
        how = scaling(info, stream.manifest.channels, wanted.scale, wanted.bias)
        return drawn(batch.to(self.world.device), info, how, self.seed)

    def advance(self, images: int) -> None:
        """Count an iteration of `images` images, and do the work that is due after it.

        Raises Stopped, after a checkpoint, when a single process was asked to stop.
        """
        before, self.images = self.images, self.images + images
        self.iterations += 1
        self.progress.advance(self.images)
        if self.bad_steps.end_iteration():
            self._go_back(
                f"losses or gradients of {self.bad_steps.in_a_row} consecutive iterations or steps"
            )
            return
        last = self.images >= self.settings.images
        stopping = self.world.size == 1 and self.asked_to_stop() and not last  # else see `read`
        intervals = self.average.intervals if self.average is not None else {}
        hold = self.bad_steps.iterations > 0
        self._do(self.schedule.due(before, self.images, intervals, hold=hold, stopping=stopping))
        if stopping:
            raise self.stopped()

    def _do_owed(self) -> None:
        """What failed at the checkpoint that the run resumes from, which was written without it."""
        owed = set(self.start.state.get("owed", ())) if self.start is not None else set()
        if not owed:
            return
        try:
            self._do(owed | {"report", "save"})
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise

    def _do(self, now: set[str]) -> None:
        """Do the work that is due: any of `report`, `draw`, `evaluate` and `save`."""
        assert self.state is not None
        tensors = self.state.tensors() if "save" in now else {}
        if tensors and (bad := not_finite(tensors, self.world)):
            self._go_back(bad)
            return
        position = self.state.position() if "save" in now else {}
        values = self.window.collect(self.state.held) if "report" in now else {}
        try:
            evaluation = self._look(now, values)
        except Exception as error:
            if "save" in now:  # where the others may wait elsewhere, without them
                owed, alone = now & {"draw", "evaluate"}, not self.world.shared(error)
                self._save(tensors, position, None, owed=owed, alone=alone)
            raise
        if values:
            self.world.on_main(lambda: self.progress.report(self.images, values))
            self.reported_at = self.images
        if "save" in now:
            self._save(tensors, position, evaluation)

    def _look(self, now: set[str], values: dict[str, Any]) -> dict[str, Any] | None:
        """Make the grid and the evaluation that are due, and add its numbers to `values`."""
        if self.average is None or not now & {"draw", "evaluate"}:
            return None
        network, evaluation = self.average.network(), None
        if "draw" in now:
            self._draw(self.average, network)
        if "evaluate" in now:
            evaluation = self.average.evaluate(network)
            values |= evaluation["values"] | self.stop_rule.note(evaluation, self.images)
        if self.stop_rule.spent and "draw" not in now:  # the end of the run has its grid
            self._draw(self.average, network)
        return evaluation

    def _draw(self, average: Average, network: Any) -> None:
        """Write the grid of fixed seeds, and show it."""
        path = self.path / "samples" / f"{self.images:010d}.png"
        average.save_grid(network, path)
        self.world.on_main(lambda: self.progress.picture(self.images, path))

    def _go_back(self, what: str) -> None:
        """Return to the newest checkpoint, and continue with other images and draws.

        Raises UserError when there is none, or after too many returns to it.
        """
        assert self.state is not None
        cause = f"{what} not finite at {self.images:,} images"
        newest = self.world.on_main(lambda: checkpoint.newest(self.path / "checkpoints"))
        step = self.bad_steps.way_back(cause, newest)
        where = f"returning to {step.path.name}, with images in another order"
        say(self.settings, self.world, f"warning: {cause}; {where}")
        self.stand_at({**step.state, "rollbacks": self.rollbacks + 1})
        self.state.load_with_other_data(step, self.seed)
        self.schedule.waiting.clear()
        self.window.counts.clear()
        self.window.count("rollbacks")
        self.window.restart()
        self.progress.start_at(self.images, self.progress.seconds)

    def _save(
        self,
        tensors: Tensors,
        position: dict[str, Any],
        evaluation: dict[str, Any] | None,
        *,
        owed: Collection[str] = (),
        alone: bool = False,
    ) -> None:
        """Write a checkpoint. owed: what the next start does first. alone: rank 0 waits for nobody,
        and nobody for it."""
        assert self.state is not None
        self.saved_at = self.images
        counters = {
            "images": self.images,
            "iterations": self.iterations,
            "seconds": self.progress.seconds,
            "rollbacks": self.rollbacks,
            "base": self.base,
            "precision": self.precision,
            "evaluation": evaluation,
            "stop": self.stop_rule.state(),
            "rates": self.rates,
            "branch": self.branch,
            "data": position,
            **({"owed": sorted(owed)} if owed else {}),
        }
        folder, keep = self.path / "checkpoints", self.settings.checkpoint.keep
        write = partial(self.state.save, folder, keep=keep, tensors=tensors, counters=counters)
        if not alone:
            self.world.on_main(write)
        elif self.world.is_main:
            write()
