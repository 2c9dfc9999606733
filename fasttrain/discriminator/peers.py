"""Batch norm groups that span processes: `norm_group` consecutive images of the global batch,
divided equally over several consecutive ranks.

All of them have the statistics of the whole group, and the gradients too: a rank's logits depend on
the images of its peers, whose gradients return to it. As long as all ranks run the same operations
in the same order, forward, backward, and the double backward of exact R1 equal those of one
process.

    peers = peers_of(settings.batch, settings.discriminator.norm_group, world)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fasttrain.settings import RunSettings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World

__all__ = ["Peers", "check_groups", "check_processes", "peers_of"]


@dataclass(frozen=True)
class Peers:
    """`size` processes that share groups; this one is number `rank`. `add` sums a dense tensor over
    them, in place."""

    rank: int
    size: int
    add: Callable[[Tensor], None]

    def gather(self, part: Tensor) -> Tensor:
        """The tensors of all of them, [size, ...], with the same bits on each. Differentiable to
        any order; the gradient is the sum over the processes."""
        own = part.new_zeros(self.size)
        own[self.rank] = 1
        rows = own.view(-1, *[1] * part.dim()) * part
        gathered: Tensor = _Sum.apply(rows, self.add)
        return gathered


class _Sum(torch.autograd.Function):
    """The sum over processes. Every result depends on every input, so gradients are summed in the
    same way: the function is its own derivative, of any order."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, add: Callable[[Tensor], None]) -> Tensor:
        ctx.add = add
        total = values.clone(memory_format=torch.contiguous_format)
        add(total)
        return total

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return _Sum.apply(gradient, ctx.add), None


def check_groups(batch: int, norm_group: int, world_size: int) -> int:
    """Number of consecutive ranks that share a group: 1 if each has whole groups.

    Raises UserError if a group would end within the images of a rank.
    """
    share = batch // world_size
    if batch % world_size == 0 and share % norm_group == 0:
        return 1
    if batch % world_size == 0 and norm_group % share == 0:
        return norm_group // share
    sizes = [n for n in range(1, batch + 1) if batch % n == 0]
    fit = [n for n in sizes if batch // n % norm_group == 0 or norm_group % (batch // n) == 0]
    raise UserError(
        f"batch norm over groups of {norm_group} images does not fit {world_size} processes with "
        f"{share} images each: use {', '.join(map(str, fit))} processes, or another "
        f"discriminator.norm_group in a new run"
    )


def check_processes(settings: RunSettings, world: World) -> None:
    """Raises UserError unless the batch divides among the processes. A penalty on a part of the
    images (`r1.share`) allows fewer processes than the groups of batch norm do."""
    counts = settings.process_counts()
    if world.size > 1 and world.size not in counts:
        raise UserError(
            f"{world.size} processes cannot share a batch of {settings.batch} with these settings: "
            f"use {', '.join(map(str, counts))}"
        )


def peers_of(batch: int, norm_group: int, world: World) -> Peers | None:
    """The processes that share this one's groups, or None if it has whole groups. Every rank must
    call it. Raises UserError as `check_groups` does."""
    size = check_groups(batch, norm_group, world.size)
    if size == 1:
        return None
    return Peers(world.rank % size, size, world.block_sum(size))
