"""Reading a batch on every process, or on none.

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
from fasttrain.system.errors import Stopped, Unavailable, UserError
from fasttrain.system.processes import World

__all__ = ["Reading"]


class Reading:
    """Reads batches, and measures how long training waits for them.

    asked_to_stop: whether this process was asked to; looked at while a batch does not come.
    """

    def __init__(
        self, settings: RunSettings, world: World, asked_to_stop: Callable[[], bool]
    ) -> None:
        self.settings, self.world, self.asked_to_stop = settings, world, asked_to_stop
        self.warned: set[str] = set()
        self.restart()

    def restart(self) -> None:
        """Measure from now on."""
        self.waited, self.since = 0.0, time.monotonic()

    def read(self, stream: ImageStream) -> tuple[Batch, int]:
        """This process's share of the next batch, when every process could read its own, and how
        many images all of them passed over on the way.

        Raises on every process, with the stream's place as before: UserError when one could not
        read, or when all together had to pass over more images than `data.max_skipped`; Unavailable
        when a machine was at fault; Stopped when one of several processes was asked to stop, or one
        alone while it waited.
        """
        began = time.monotonic()
        batch, problem, before, over = None, None, stream.skipped, stream.passed_over
        stream.asked_to_stop = self.asked_to_stop
        try:
            batch = next(stream)
        except (UserError, Unavailable, Stopped) as error:
            problem = error
        # What `Run.advance` would need a collective for: the one below tells the others.
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
        """The same error on every process: some process has a problem, or all together have passed
        over too many images, this one the last because of `fault`."""
        gathered = self.world.gather((problem, fault))
        problems = [problem for problem, _ in gathered if problem is not None]
        faults = [fault for _, fault in gathered if fault]
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
            f"{why}; mend it or raise data.max_skipped="
            f"{self.settings.data.max_skipped}, and the same command resumes the run"
        )

    def waiting(self) -> dict[str, float]:
        """The share of the time since the last call that went by in `read`, over all processes."""
        waited, passed = self.world.totals([self.waited, time.monotonic() - self.since])
        self.restart()
        return {"data/waiting": round(waited / passed, 4)} if passed else {}


def apart(cursors: Sequence[Mapping[int, Any]]) -> bool:
    """Whether ranks that read the same stream are at different places in it."""
    places: dict[int, Any] = {}
    return any(
        places.setdefault(stream, place) != place
        for own in cursors
        for stream, place in own.items()
    )
