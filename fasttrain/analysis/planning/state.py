"""Memory on a process for a trained network, at each ZeRO stage.

With T trained and F frozen elements, W processes, trained elements in float32, in bytes, without
DeepSpeed's padding:

    stage            0           1             2             3
    trained         4T          4T            4T          4T / W
    frozen       2F or 4F    2F or 4F      2F or 4F     (2F or 4F) / W
    master           0        4T / W        4T / W        4T / W
    moments         8T        8T / W        8T / W        8T / W
    gradients       4T          4T          4T / W        4T / W
    average         4T        4T / W        4T / W        4T / W

`tests/planning` compares this with what two processes hold (`memory.json` of a run).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from fasttrain.analysis.planning.sizes import Sizes

__all__ = ["State", "state_of"]


@dataclass(frozen=True)
class State:
    """Bytes on the process with the most."""

    trained: int
    frozen: int
    master: int
    moments: int
    gradients: int
    average: int

    @property
    def total(self) -> int:
        return sum(asdict(self).values())


def state_of(
    sizes: Sizes,
    stage: int,
    world: int,
    *,
    frozen_bytes: int = 2,
    kept_whole: int = 0,
    averaged: bool = True,
) -> State:
    """The state of a network at a stage.

    frozen_bytes: bytes of a frozen element. kept_whole: at stage 3, parameters of at most this many
    elements stay gathered. averaged: whether it has an EMA.
    """
    trained, share = 4 * sizes.trainable, sharded(sizes.trained, world)
    average = 4 * share if stage else trained
    if stage == 3:
        return State(
            trained=4 * (share + small(sizes.trained, kept_whole)),
            frozen=frozen_bytes * (sharded(sizes.frozen, world) + small(sizes.frozen, kept_whole)),
            master=4 * share,
            moments=8 * share,
            gradients=4 * share,
            average=average if averaged else 0,
        )
    part = -(-sizes.trainable // world)
    return State(
        trained=trained,
        frozen=frozen_bytes * sum(sizes.frozen),
        master=4 * part if stage else 0,
        moments=8 * part if stage else 2 * trained,
        gradients=4 * touched(sizes.trained, part) if stage == 2 else trained,
        average=average if averaged else 0,
    )


def sharded(numels: Sequence[int], world: int) -> int:
    """Elements on the first process if each parameter is divided into W equal parts."""
    return sum(-(-numel // world) for numel in numels)


def small(numels: Sequence[int], kept_whole: int) -> int:
    return sum(numel for numel in numels if numel <= kept_whole)


def touched(numels: Sequence[int], part: int) -> int:
    """Largest number of elements of the parameters that a process has any part of, if their
    concatenation is divided into parts of `part` elements: stage 2 keeps a parameter's gradient
    completely or not at all."""
    most, begin = 0, 0
    shares: dict[int, int] = {}
    for numel in numels:
        for owner in range(begin // part, (begin + numel - 1) // part + 1):
            shares[owner] = shares.get(owner, 0) + numel
            most = max(most, shares[owner])
        begin += numel
    return most
