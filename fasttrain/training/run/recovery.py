"""Values that are not finite: skipped steps, and the return to the last good checkpoint.

bad_steps = BadSteps(settings)
bad_steps.note("generator", False)         # a step of this iteration was not applied
if bad_steps.end_iteration(): ...          # too many consecutive ones
step = bad_steps.way_back(cause, newest)   # or UserError: no checkpoint, or too many returns to it
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import torch

from fasttrain.checkpoints.checkpoint import Step
from fasttrain.settings import RunSettings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World
from fasttrain_kernels import all_finite

__all__ = ["BadSteps", "not_finite"]


class BadSteps:
    """Counts skipped steps, and returns to a checkpoint.

    Attributes:
        iterations: bad ones, with a skipped step, since the last good one.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.limits = settings.bad_steps
        self.bad, self.iterations = False, 0
        self.skipped = Counter[str]()
        self.returns = Counter[int]()
        self.returns_for = Counter[str]()

    def note(self, name: str, applied: bool) -> None:
        """Count a step that was tried; the name's consecutive skipped ones go on over iterations in
        which it is not due."""
        self.skipped[name] = 0 if applied else self.skipped[name] + 1
        self.bad |= not applied
        if applied:
            del self.returns_for[name]

    @property
    def in_a_row(self) -> int:
        """Consecutive iterations with a skipped step, or skipped steps of a name, if more."""
        return max([self.iterations, *self.skipped.values()])

    def end_iteration(self) -> bool:
        """End an iteration; whether there were too many consecutive bad ones."""
        self.iterations = self.iterations + 1 if self.bad else 0
        self.bad = False
        return self.in_a_row >= self.limits.in_a_row

    def way_back(self, cause: str, newest: Step | None) -> Step:
        """The checkpoint to return to.

        cause: description of the values that are not finite, for the error. Raises UserError when
        there is no checkpoint, or after too many returns to it.
        """
        if newest is None:
            raise UserError(
                f"{cause}, before the first checkpoint; start another run=DIR with lower rates"
            )
        self.returns[newest.images] += 1
        # A step that is rarely due meets a newer checkpoint at each return.
        self.returns_for.update(n for n, c in self.skipped.items() if c >= self.limits.in_a_row)
        times = max([self.returns[newest.images], *self.returns_for.values()])
        if times > self.limits.rollbacks:
            raise UserError(
                f"{cause}, also after returning to {newest.path.name} {self.limits.rollbacks} "
                f"times; it is intact: start another run=DIR with lower rates"
            )
        self.iterations = 0
        self.skipped.clear()
        return newest


def not_finite(tensors: Mapping[str, Mapping[str, torch.Tensor]], world: World) -> str:
    """The name of the first tensor of rank 0 that is not finite, or an empty string, on every
    process: weights that are not finite are never saved."""
    named = [item for part in tensors.values() for item in part.items()]
    # ZeRO's parts are assembled on the CPU, buffers stay on the GPU.
    places: dict[torch.device, list[torch.Tensor]] = {}
    for _, tensor in named:
        places.setdefault(tensor.device, []).append(tensor)
    bad = ""
    if not all(all_finite(group) for group in places.values()):
        bad = next(name for name, tensor in named if not all_finite([tensor]))
    return str(world.from_main(bad))
