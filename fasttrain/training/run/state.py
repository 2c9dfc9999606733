"""The content of a checkpoint: named tensors of the trained parts, and the data cursor.

state = TrainingState(cursor=stream, parts={"generator": engine, "ema": ema}, world=world)
state.load(step)
tensors, position = state.tensors(), state.position()
state.save(folder, keep=2, tensors=tensors, counters={"images": 640, "data": position, ...})
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.checkpoint import Step
from fasttrain.data.cursor import fresh_order, merged
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World

__all__ = ["Cursor", "Stateful", "Tensors", "TrainingState"]

Tensors = dict[str, dict[str, torch.Tensor]]
"""Part of the training state -> its named tensors."""


class Stateful(Protocol):
    """A part of the training state with named tensors."""

    def state_dict(self) -> dict[str, torch.Tensor]: ...

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None: ...


@runtime_checkable
class Measured(Protocol):
    """A part whose memory is recorded in `memory.json`."""

    def held(self) -> Any:
        """Bytes of the part on this process."""


class Cursor(Protocol):
    """The position of the data stream."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class TrainingState:
    """The parts by the names of their files, and the data's cursor."""

    cursor: Cursor
    parts: Mapping[str, Stateful]
    world: World

    def load(self, step: Step) -> None:
        """Load everything from a checkpoint. Raises UserError when it holds no cursor."""
        self._load_parts(step)
        try:
            self.cursor.load_state_dict(step.state["data"])
        except (AttributeError, LookupError, TypeError) as error:
            raise UserError(
                f"{step.path / 'state.json'} is not the state of a run: its data hold no cursor "
                f"({type(error).__name__})"
            ) from None

    def load_with_other_data(self, step: Step, seed: int) -> None:
        """Load a checkpoint, but continue with the images in another order, that of `seed`."""
        self._load_parts(step)
        self.cursor.load_state_dict(fresh_order(step.state["data"], seed))

    def _load_parts(self, step: Step) -> None:
        for name, part in self.parts.items():
            with self.world.agreed():  # `load_state_dict` may have collectives
                tensors = step.tensors(name)
            part.load_state_dict(tensors)

    def tensors(self) -> Tensors:
        """Full named tensors, on rank 0 (elsewhere empty); every process must call it."""
        return {name: part.state_dict() for name, part in self.parts.items()}

    def held(self) -> dict[str, Any]:
        """Bytes on this process by part; that of `ema` is called `average`, as in a plan."""
        names = {name: "average" if name == "ema" else name for name in self.parts}
        measured = {n: part for n, part in self.parts.items() if isinstance(part, Measured)}
        return {names[n]: part.held() for n, part in measured.items()}

    def position(self) -> dict[str, Any]:
        """The data cursor of all processes; every process must call it."""
        return merged(self.world.gather(self.cursor.state_dict()))

    def save(
        self, folder: Path, *, keep: int, tensors: Tensors, counters: Mapping[str, Any]
    ) -> None:
        """Write a checkpoint, and delete superfluous ones; on rank 0."""
        checkpoint.save(folder, counters["images"], tensors, counters)
        checkpoint.prune(folder, keep, counters["images"])
