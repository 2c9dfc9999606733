"""What a run says of the parts of its training state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from fasttrain.system.processes import ONE_PROCESS
from fasttrain.training.run.state import TrainingState


class Part:
    def state_dict(self) -> dict[str, Tensor]:
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        pass


class Measured(Part):
    def held(self) -> int:
        return 8


def test_memory_is_told_by_the_names_of_the_plan() -> None:
    """Of parts that know theirs: `memory.json` is read beside `fasttrain plan`."""
    parts: dict[str, Any] = {"generator": Measured(), "ema": Measured(), "projector": Part()}
    held = TrainingState(None, parts, ONE_PROCESS).held()  # type: ignore[arg-type]
    assert held == {"generator": 8, "average": 8}
