"""Numbers that have gone bad: steps that are skipped, and going back to the last good checkpoint.

bad_steps = BadSteps(settings)
bad_steps.skip()                           # a step of this iteration was not applied
if bad_steps.end_iteration(): ...          # too many in a row
step = bad_steps.way_back(found, newest)   # or UserError: nowhere to go, or gone there too often
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
    """Counts iterations with a step that was not applied, and the times a run went back.

    Attributes:
        in_a_row: such iterations since the last good one.
    """

    def __init__(self, settings: RunSettings) -> None:
        self.limits = settings.bad_steps
        self.skipped, self.in_a_row = False, 0
        self.returns = Counter[int]()

    def skip(self) -> None:
        """A step of this iteration was not applied."""
        self.skipped = True

    def end_iteration(self) -> bool:
        """Whether this was one iteration too many in a row."""
        self.in_a_row = self.in_a_row + 1 if self.skipped else 0
        self.skipped = False
        return self.in_a_row >= self.limits.in_a_row

    def way_back(self, found: str, newest: Step | None) -> Step:
        """The checkpoint to go back to.

        found: what is not finite, for the error. Raises UserError when there is no checkpoint, or
        when going back to this one has been tried often enough.
        """
        if newest is None:
            raise UserError(
                f"{found}, before the first checkpoint; start another run=DIR with lower rates"
            )
        self.returns[newest.images] += 1
        if self.returns[newest.images] > self.limits.rollbacks:
            raise UserError(
                f"{found}, also after going back to {newest.path.name} {self.limits.rollbacks} "
                f"times; it is intact: start another run=DIR with lower rates"
            )
        self.in_a_row = 0
        return newest


def not_finite(tensors: Mapping[str, Mapping[str, torch.Tensor]], world: World) -> str:
    """The name of the first tensor of rank 0 that is not finite, or an empty string, on every
    process: no checkpoint is written of weights that have gone bad."""
    named = [item for part in tensors.values() for item in part.items()]
    # ZeRO's parts are assembled on the CPU, buffers stay on the GPU.
    places: dict[torch.device, list[torch.Tensor]] = {}
    for _, tensor in named:
        places.setdefault(tensor.device, []).append(tensor)
    bad = ""
    if not all(all_finite(group) for group in places.values()):
        bad = next(name for name, tensor in named if not all_finite([tensor]))
    return str(world.from_main(bad))
