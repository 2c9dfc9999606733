"""A run directory that this job trains in: its lock, its starting point, requests to stop.

opened = Opened(settings, world)
opened.start, opened.images, opened.seed
opened.close()
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.branch import branch, trunk_of
from fasttrain.checkpoints.directory import open_directory
from fasttrain.checkpoints.lock import Lock
from fasttrain.checkpoints.rates import changes, continued, rates_of
from fasttrain.settings import RunSettings
from fasttrain.system.errors import Stopped
from fasttrain.system.files import awaited
from fasttrain.system.processes import World
from fasttrain.system.signals import StopSignals
from fasttrain.training.run.boards import check_boards
from fasttrain.training.run.iterations import Iterations
from fasttrain.training.run.stop_rule import StopRule

__all__ = ["Opened"]


class Opened(Iterations):
    """The directory, held by rank 0's lock until `close`.

    Attributes:
        start: the checkpoint that the run resumes from, or None.
        rollbacks: number of returns to a checkpoint.
        branch: the run and the images of the checkpoint that this run began as, or None.
        rates, changed: the history of the learning rates, and what is new with this command.

    Raises UserError when the directory belongs to other settings, is in use or cannot be written;
    Unavailable when its holder seems to be gone.
    """

    signals: StopSignals

    def __init__(self, settings: RunSettings, world: World) -> None:
        super().__init__(settings)
        self.world, self.path = world, settings.run
        self.stop_rule = StopRule(settings)
        self.lock: Lock | None = None
        world.on_main(self._open)
        self.start = world.on_main(lambda: checkpoint.newest(self.path / "checkpoints"))
        with world.agreed():  # each process reads the checkpoint
            if self.start is not None:
                awaited(self.start.path / checkpoint.STATE)
            self.stand_at(self.start.state if self.start else {})

    def _open(self) -> None:
        check_boards(self.settings)
        trunk = None
        if self.settings.from_ is not None and checkpoint.newest(self.path / "checkpoints") is None:
            trunk = trunk_of(self.settings)  # there are none, or all are damaged
        self.lock = open_directory(self.settings)  # before anything is written
        checkpoint.tidy(self.path / "checkpoints")
        if trunk is not None:
            branch(trunk, self.path)

    def stand_at(self, state: Mapping[str, Any]) -> None:
        """Set the counters to those of a checkpoint."""
        self.images = state.get("images", 0)
        self.iterations = state.get("iterations", 0)
        self.rollbacks: int = state.get("rollbacks", 0)
        self.stop_rule.load(state.get("stop"))
        self.branch: dict[str, Any] | None = state.get("branch")
        history = state.get("rates", [])
        self.rates = continued(history, self.images, rates_of(self.settings))
        self.changed = changes(history[-1], rates_of(self.settings)) if history else []
        self.saved_at = self.reported_at = self.images

    @property
    def ended(self) -> bool:
        """Whether the last image has been seen, or the stop rule ends the run."""
        return super().ended or self.stop_rule.spent

    @property
    def seed(self) -> int:
        """Seed of every draw of the loop; it changes with each return to a checkpoint."""
        return (self.settings.seed + self.rollbacks * 0x9E3779B97F4A7C15) % 2**63

    def asked_to_stop(self) -> bool:
        """Whether a signal or the stop file asked this process to stop."""
        return self.signals.asked or (self.lock is not None and self.lock.asked_to_stop())

    def stopped(self) -> Stopped:
        """The exception that ends a command on request, after its checkpoint."""
        where = f"{self.path}: stopped at {self.images:,} images"
        return Stopped(f"{where}; the same command resumes it")

    def close(self) -> None:
        """Release the directory for another command."""
        if self.lock is not None:
            self.lock.release()
