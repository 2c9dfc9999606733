"""Read a batch on every process, or on none.

reading = Reading(settings, world, asked_to_stop)
batch, skipped = reading.read(stream)              # or all processes raise the same error
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from fasttrain.data import Batch, ImageStream
from fasttrain.settings import RunSettings
from fasttrain.system.errors import PeerError, Stopped, Unavailable, UserError, for_others
from fasttrain.system.processes import World

__all__ = ["Reading"]


class Reading:
    """Reads batches, and measures the time that training waits for them.

    asked_to_stop: whether this process was asked to stop; polled during the wait for a batch.
    """

    def __init__(
        self, settings: RunSettings, world: World, asked_to_stop: Callable[[], bool]
    ) -> None:
        self.settings, self.world, self.asked_to_stop = settings, world, asked_to_stop
        self.warned: set[str] = set()
        self.restart()

    def restart(self) -> None:
        """Start a new measurement."""
        self.waited, self.since = 0.0, time.monotonic()

    def read(self, stream: ImageStream) -> tuple[Batch, int]:
        """This process's part of the next batch, if every process could read its own, and the
        number of images that all of them skipped before it.

        Raises on every process, with the stream's cursor unchanged: UserError when one could not
        read, or when all together had to skip more images than `data.max_skipped`; Unavailable
        when a machine was at fault; Stopped when one of several processes was asked to stop, or a
        single process during its wait; and what nobody expects.
        """
        began = time.monotonic()
        batch, problem, before, over = None, None, stream.skipped, stream.passed_over
        stream.asked_to_stop = self.asked_to_stop
        try:
            batch = next(stream)
        except Exception as error:  # also one that nobody expects: the others wait below
            problem = error
        # The collective below also sends this request, so that `Run.advance` needs none.
        if problem is None and self.world.size > 1 and self.asked_to_stop():
            problem = Stopped("asked to stop")
        self.waited += time.monotonic() - began
        own, over = stream.skipped - before, stream.passed_over - over
        counts = [stream.skipped, own, over, float(problem is not None)]
        skipped, new, anywhere, failed = self.world.totals(counts)
        if anywhere and not failed:
            failed = apart(self.world.gather(dict(stream.cursors)))
            if failed and stream.faults:
                why = f"not every process can read what another reads: {stream.faults[-1]}"
                problem = UserError(why)
        if failed or (new and skipped > self.settings.data.max_skipped):
            if batch is not None:
                stream.give_back()
            self._end(problem, "".join(stream.faults[-1:]), int(skipped))
        if new:
            for fault in dict.fromkeys(stream.faults):
                if own and fault not in self.warned:  # once, also where several ranks read it
                    print(f"{self.settings.run}: warning: skipped: {fault}", file=sys.stderr)
            self.warned.update(stream.faults)
            stream.faults.clear()
        assert batch is not None
        return batch, int(new)

    def _end(self, problem: Exception | None, fault: str, skipped: int) -> NoReturn:
        """Raise the same error on every process: some process has a problem, or all together
        skipped too many images, this process the last one because of `fault`."""
        told = None if problem is None else for_others(problem)
        if self.world.size > 1 and not isinstance(told, PeerError):
            problem = told  # as the others know it: all write a checkpoint, or none
        gathered = self.world.gather((told, fault))
        problems = [problem for problem, _ in gathered if problem is not None]
        faults = [fault for _, fault in gathered if fault]
        for unexpected in (problem, *problems):  # its own one has the traceback
            if not isinstance(unexpected, UserError | Unavailable | Stopped | None):
                raise unexpected
        mistakes = [problem for problem in problems if isinstance(problem, UserError)]
        if problems and not mistakes:
            for problem in problems:
                if isinstance(problem, Stopped):
                    raise problem
            raise Unavailable(f"{problems[0]}; the same command resumes the run")
        why = (
            str(mistakes[0])
            if mistakes
            else f"{faults[0]} (images that cannot be read, over all processes: {skipped})"
        )
        raise UserError(
            f"{why}; fix it or raise data.max_skipped="
            f"{self.settings.data.max_skipped}, and the same command resumes the run"
        )

    def waiting(self) -> dict[str, float]:
        """Fraction of the time since the last call that was spent in `read`, over all processes."""
        waited, passed = self.world.totals([self.waited, time.monotonic() - self.since])
        self.restart()
        return {"data/waiting": round(waited / passed, 4)} if passed else {}


def apart(cursors: Sequence[Mapping[int, Any]]) -> bool:
    """Whether ranks that read the same stream are at different positions in it."""
    places: dict[int, Any] = {}
    return any(
        places.setdefault(stream, place) != place
        for own in cursors
        for stream, place in own.items()
    )
