"""Improved precision and recall (Kynkaanniemi et al., arXiv 1904.06991).

A set of features is represented by the union of balls around its rows, each with the distance to
the row's k-th nearest neighbour in the set as its radius. Precision is the fraction of generated
images in the real set's union, recall the fraction of real ones in the generated set's:

    precision = mean_g [ exists r: |g - r| <= |r - NN_k(r)| ],     recall with g and r swapped

    shares = precision_recall(real, fake, world=world)      # {"precision": ..., "recall": ...}

Distances are float64, from inner products in blocks, so memory grows only with N; the rows are
divided over the processes, and all get the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from fasttrain.system.errors import UserError
from fasttrain.system.processes import ONE_PROCESS, World

__all__ = ["NEIGHBOURS", "precision_recall"]

NEIGHBOURS = 3
ROWS, COLUMNS = 1024, 4096
"""Size limit of a block of distances in memory."""
UNSEEN = 1e-12
"""Squared distances below this fraction of the squared lengths are rounding: the rows are equal."""


def precision_recall(
    real: Tensor,
    fake: Tensor,
    neighbours: int = NEIGHBOURS,
    *,
    world: World = ONE_PROCESS,
    advance: Callable[[int], None] = lambda rows: None,
) -> dict[str, float]:
    """{"precision", "recall"} of features [N, F] and [M, F], the same on every process.

    advance: called with the number of rows done since, of the N + 2 M of all processes.

    Raises UserError for sets that have no more rows than neighbours.
    """
    for name, features in (("real", real), ("generated", fake)):
        if len(features) <= neighbours:
            raise UserError(
                f"{len(features)} {name} images: precision and recall use {neighbours} "
                f"neighbours of each, use more images"
            )

    def own(rows: int) -> Iterator[slice]:
        """This process's rows, in blocks."""
        begin, end = (rows * rank // world.size for rank in (world.rank, world.rank + 1))
        for start in range(begin, end, ROWS):
            block = slice(start, min(start + ROWS, end))
            yield block
            advance(block.stop - block.start)

    def reach_of(rows: Tensor) -> Tensor:
        """Squared radius of each row's ball; with one more neighbour, as a row is its own
        nearest."""
        radii = [nearest(rows[block], rows, neighbours + 1) for block in own(len(rows))]
        empty = rows.new_zeros(0, dtype=torch.float64)
        return world.rows(torch.cat([empty, *radii])).to(rows.device)

    reach_real, reach_fake = reach_of(real), reach_of(fake)
    inside = 0
    covered = torch.zeros(len(real), dtype=torch.float64, device=real.device)
    for block in own(len(fake)):
        among = torch.zeros(block.stop - block.start, dtype=torch.bool, device=real.device)
        for start in range(0, len(real), COLUMNS):
            part = slice(start, start + COLUMNS)
            squared = squared_distances(fake[block], real[part])
            among |= (squared <= reach_real[part]).any(1)
            covered[part] += (squared <= reach_fake[block, None]).any(0)
        inside += int(among.sum())
    total = world.sum(torch.tensor(float(inside), dtype=torch.float64, device=world.device))
    reached = world.sum(covered.to(world.device)) > 0
    return {"precision": float(total) / len(fake), "recall": float(reached.double().mean())}


def nearest(rows: Tensor, others: Tensor, place: int) -> Tensor:
    """Squared distance of each row to the `place`-th nearest of the others, float64."""
    best = torch.full((len(rows), place), torch.inf, dtype=torch.float64, device=rows.device)
    for part in others.split(COLUMNS):
        both = torch.cat([best, squared_distances(rows, part)], 1)
        best = both.topk(place, largest=False, sorted=True).values
    return best[:, -1]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """[n, m] of rows [n, F] and [m, F], float64; 0 where they differ by no more than rounding."""
    x, y = x.double(), y.double()
    lengths = x.square().sum(1)[:, None] + y.square().sum(1)
    squared = torch.addmm(lengths, x, y.T, alpha=-2)
    return squared.masked_fill_(squared < UNSEEN * lengths, 0)
