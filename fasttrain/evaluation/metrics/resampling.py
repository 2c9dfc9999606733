"""95 % intervals of the metrics for other generated images, by resampling.

The generated images are divided into groups of consecutive seeds with equally many images of all
classes, and the metric is computed again without each group (delete-a-group jackknife). The
bootstrap would be biased: it draws images twice, and a Frechet distance grows with the missing
ones.

    SE^2 = (G - 1) / G  sum_g (x_g - mean x)^2,     x +- t SE

- `frechet_estimate`: `fd`, each group removed from mean and covariance.
- `kernel_estimate`: `kd` over all pairs up to 10,000 images, each group removed from the sums;
  beyond that the mean over random subsets of 1,000, as kernel inception distances are published.
- `share_estimate`: precision, a fraction of the generated images, with Wilson's interval, which has
  a width at 0 and at 1, too.

Recall has none: it is a fraction of the real images, and the effect of other generated images on
the union of their balls is not computed.

The reference is fixed. An interval does not cover another reference, or the bias that a Frechet
distance has at any number of images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fasttrain.evaluation.metrics.distances import (
    gaussian_distance,
    kernel_diagonal,
    kernel_distance,
    kernel_sum,
    symmetric_factor,
)
from fasttrain.evaluation.metrics.statistics import Statistics
from fasttrain.system.processes import World

__all__ = ["Estimate", "frechet_estimate", "kernel_estimate", "share_estimate"]

GROUPS = 20
T_GROUPS = 2.093
"""The 97.5 % quantile of Student's t with 19 degrees of freedom."""
NORMAL = 1.96
ALL_PAIRS = 10_000
"""Largest number of images of either set for which `kd` uses all pairs."""
SUBSETS, SUBSET = 100, 1000
TOO_FEW = "too few images"


@dataclass(frozen=True)
class Estimate:
    """A metric's value and its 95 % interval; None without one, with the reason."""

    value: float
    low: float | None = None
    high: float | None = None
    why: str | None = None

    @classmethod
    def around(cls, value: float, margin: float, least: float = -math.inf) -> Estimate:
        return cls(value, max(least, value - margin), value + margin)


def bounds(rows: int, groups: int = GROUPS) -> list[tuple[int, int]]:
    """Begin and end of each group."""
    return [(rows * g // groups, rows * (g + 1) // groups) for g in range(groups)]


def margin_of(without: Sequence[float]) -> float:
    """Half of the interval, from the metric without each group."""
    x = torch.tensor(without, dtype=torch.float64)
    return T_GROUPS * float(((len(x) - 1) * x.var(correction=0)).sqrt())


def frechet_estimate(
    reference: Statistics, fake: Statistics, features: Tensor | None, world: World
) -> Estimate:
    """The Frechet distance, with an interval if all generated features [N, F] are available; the
    groups are divided over the processes."""
    factor = symmetric_factor(reference.sigma)
    value = gaussian_distance(reference.mu, factor, fake.mu, symmetric_factor(fake.sigma))
    if features is None:
        return Estimate(value, why="too many images to keep all their features")
    if len(features) < 2 * GROUPS:
        return Estimate(value, why=TOO_FEW)
    own = {}
    for group in range(world.rank, GROUPS, world.size):
        begin, end = bounds(len(features))[group]
        mu, sigma = without(fake, features[begin:end].to(fake.mu))
        # Accurate to half of float64's digits, more than an interval needs, in a third of the time.
        squared = torch.linalg.eigvalsh(factor @ sigma @ factor.T)
        rounding = len(squared) * torch.finfo(squared.dtype).eps * squared.max()
        cross = squared[squared > rounding].sqrt().sum()
        trace = reference.sigma.trace() + sigma.trace()
        own[group] = float((reference.mu - mu).square().sum() + trace - 2 * cross)
    distances = {group: x for part in world.gather(own) for group, x in part.items()}
    return Estimate.around(value, margin_of([distances[group] for group in range(GROUPS)]), least=0)


def without(all_: Statistics, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance without some of their rows."""
    assert all_.images is not None
    n, gone = all_.images, len(rows)
    left = n - gone
    mean = rows.mean(0)
    gap = mean - all_.mu
    centred = rows - mean
    scatter = (n - 1) * all_.sigma - centred.T @ centred - (gone * n / left) * torch.outer(gap, gap)
    return all_.mu - gap * (gone / left), scatter / (left - 1)


def kernel_estimate(
    real: Tensor, fake: Tensor, world: World, advance: Callable[[], None] = lambda: None
) -> Estimate:
    """The kernel distance of features [N, F] and [M, F] that all processes hold; the work is
    divided over them. `advance` is called after each of about 100 parts, or 1,000, over all
    processes."""
    if max(len(real), len(fake)) > ALL_PAIRS and min(len(real), len(fake)) >= SUBSET:
        return _over_subsets(real, fake, world, advance)
    return _over_all_pairs(real.double(), fake.double(), world, advance)


def _over_subsets(
    real: Tensor, fake: Tensor, world: World, advance: Callable[[], None]
) -> Estimate:
    """Mean over subsets, subset s drawn with the seed s. The interval covers the subsets' sampling;
    the common part, the sampling of the full sets, is smaller by SUBSET / N."""
    own = {}
    for s in range(world.rank, SUBSETS, world.size):
        draw = torch.Generator().manual_seed(s)
        rows = [torch.randperm(len(x), generator=draw)[:SUBSET].to(x.device) for x in (real, fake)]
        own[s] = kernel_distance(real[rows[0]], fake[rows[1]])
        advance()
    distances = {s: x for part in world.gather(own) for s, x in part.items()}
    x = torch.tensor([distances[s] for s in range(SUBSETS)], dtype=torch.float64)
    whole = SUBSET / min(len(real), len(fake))
    return Estimate.around(float(x.mean()), NORMAL * float(x.std()) * (1 / SUBSETS + whole) ** 0.5)


def _over_all_pairs(
    real: Tensor, fake: Tensor, world: World, advance: Callable[[], None]
) -> Estimate:
    sets = {"r": real, "f": fake}
    parts = {name: [x[b:e] for b, e in bounds(len(x))] for name, x in sets.items()}
    every = range(GROUPS)
    tasks = [(a + a, g, h) for a in sets for g in every for h in range(g, GROUPS)]
    tasks += [("rf", g, h) for g in every for h in every]
    own = {}
    for which, g, h in tasks[world.rank :: world.size]:
        own[which, g, h] = float(kernel_sum(parts[which[0]][g], parts[which[1]][h], 1024))
        advance()
    sums = {key: x for part in world.gather(own) for key, x in part.items()}

    def table(which: str) -> Tensor:
        """Sums of k over the pairs of two groups, for all groups."""
        alike = which[0] == which[1]
        pairs = [(min(g, h), max(g, h)) if alike else (g, h) for g in every for h in every]
        rows = torch.tensor([sums[which, *pair] for pair in pairs], dtype=torch.float64)
        return rows.view(GROUPS, GROUPS)

    n, m = len(real), len(fake)
    size = torch.tensor([len(part) for part in parts["f"]])
    own_pairs = torch.stack([kernel_diagonal(part) for part in parts["f"]]).cpu()
    rr = float(table("rr").sum() - kernel_diagonal(real).cpu()) / (n * (n - 1))
    ff, rf = table("ff"), table("rf")
    within = ff.sum() - own_pairs.sum()

    def distance(within: Tensor, between: Tensor, count: Tensor) -> Tensor:
        return rr + within / (count * (count - 1)) - 2 * between / (n * count)

    value = float(distance(within, rf.sum(), torch.tensor(m)))
    if m < 2 * GROUPS:
        return Estimate(value, why=TOO_FEW)
    less = within - (2 * ff.sum(1) - ff.diagonal() - own_pairs)
    without_each = distance(less, rf.sum() - rf.sum(0), m - size)
    return Estimate.around(value, margin_of(without_each.tolist()))


def share_estimate(share: float, images: int) -> Estimate:
    """A fraction of a number of images, with Wilson's interval for other images:

    (p + z^2 / 2n +- z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    """
    z = NORMAL * NORMAL / images
    middle = share + z / 2
    margin = math.sqrt(z * (share * (1 - share) + z / 4))
    return Estimate(
        share, max(0.0, (middle - margin) / (1 + z)), min(1.0, (middle + margin) / (1 + z))
    )
