"""What is due as images go by: reports, grids, evaluations, checkpoints.

schedule = Schedule(settings)
now = schedule.due(before, images, works, hold=bad_steps.in_a_row > 0)    # {"report", "save"}
"""

from __future__ import annotations

from collections.abc import Mapping

from fasttrain.settings import RunSettings

__all__ = ["Schedule"]


class Schedule:
    """Remembers what is due and waits. `waiting` names it."""

    def __init__(self, settings: RunSettings) -> None:
        self.settings = settings
        self.waiting: set[str] = set()

    def due(
        self,
        before: int,
        images: int,
        intervals: Mapping[str, int],
        *,
        hold: bool,
        stopping: bool,
    ) -> set[str]:
        """What to do after an iteration that led from `before` to `images` images.

        intervals: images after which other work than reports and checkpoints is due again, 0 for
            only at the end.
        hold: the last steps could not be applied, and a model that no step can be taken from is not
            worth keeping: what is due waits, unless this is the end.
        stopping: the run ends here for now.
        """
        last = images >= self.settings.images

        def passed(every: int) -> bool:
            return last or (every > 0 and images // every > before // every)

        works = {"save": self.settings.checkpoint.every, **intervals}
        self.waiting |= {work for work, every in works.items() if passed(every)}
        now = set(self.waiting) if not hold or last or stopping else set()
        self.waiting -= now
        # Each evaluation has its checkpoint, so that the best can be kept; and each checkpoint its
        # line, so that a resumed run's lines are those of one without a break.
        if stopping or "evaluate" in now:
            now.add("save")
        if passed(self.settings.report_every) or "save" in now:
            now.add("report")
        return now
