"""Work that is due after each number of images: statistics, grids, evaluations, checkpoints.

schedule = Schedule(settings)
now = schedule.due(before, images, works, hold=bad_steps.iterations > 0)    # {"report", "save"}
"""

from __future__ import annotations

from collections.abc import Mapping

from fasttrain.settings import RunSettings

__all__ = ["Schedule"]


class Schedule:
    """Decides what is due, and remembers postponed work in `waiting`."""

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
        """Work to do after an iteration from `before` to `images` images.

        intervals: images between two runs of other work than statistics and checkpoints, 0 for only
            at the end.
        hold: the last steps could not be applied, so the model may not be worth keeping: work is
            postponed, unless this is the end.
        stopping: the run ends here for now.
        """
        last = images >= self.settings.images

        def passed(every: int) -> bool:
            return last or (every > 0 and images // every > before // every)

        works = {"save": self.settings.checkpoint.every, **intervals}
        self.waiting |= {work for work, every in works.items() if passed(every)}
        now = set(self.waiting) if not hold or last or stopping else set()
        self.waiting -= now
        # Each evaluation has a checkpoint, so that the best can be kept; and each checkpoint has a
        # line of statistics, so that a resumed run has the same lines as an unbroken one.
        if stopping or "evaluate" in now:
            now.add("save")
        if passed(self.settings.report_every) or "save" in now:
            now.add("report")
        return now
