"""Statistics, features and class scores of images, over all processes.

Images are numbered, and divided into batches: batch b holds the numbers b B to (b + 1) B - 1 for
any number of processes, so that a batch is the same computation on each of them; every process has
consecutive batches.

    batches = ((part, images_of(part)) for part in parts_of(count, batch, world))
    collected = collect(batches, extractor, count=count, keep=KEPT, world=world)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from fasttrain.evaluation.extractors import Extractor
from fasttrain.evaluation.metrics.class_scores import ClassScores
from fasttrain.evaluation.metrics.resampling import Estimate
from fasttrain.evaluation.metrics.statistics import Moments, Statistics
from fasttrain.system.processes import World

__all__ = ["KEPT", "Collected", "collect", "parts_of"]

KEPT = 50_000
"""Most images of a set whose features are kept, for distances between images; evenly spaced."""


@dataclass(frozen=True)
class Collected:
    """Statistics, features and class scores of a set of images, the same on every process."""

    statistics: Statistics | None
    """None when not requested."""
    features: Tensor | None
    """[K, F] float32 on the CPU, of evenly spaced images; None when not requested."""
    score: Estimate | None
    """The inception score, where the extractor classifies."""

    @property
    def complete(self) -> Tensor | None:
        """The features, if all images' are kept."""
        if self.features is None or self.statistics is None:
            return None
        return self.features if len(self.features) == self.statistics.images else None


def parts_of(count: int, batch: int, world: World) -> list[range]:
    """This process's batches of the numbers 0 to count - 1."""
    parts = [range(first, min(first + batch, count)) for first in range(0, count, batch)]
    begin, end = (len(parts) * rank // world.size for rank in (world.rank, world.rank + 1))
    return parts[begin:end]


def _some(count: int, keep: int) -> Tensor:
    """Which of `count` numbers are kept, bool [count]: at random, always the same. At even
    distances they would go in step with the classes, which come in turn."""
    chosen = torch.zeros(count, dtype=torch.bool)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    return chosen.index_fill(0, order[:keep], True)


def collect(
    batches: Iterable[tuple[range, Tensor]],
    extractor: Extractor,
    *,
    count: int,
    keep: int,
    world: World,
    moments: bool = True,
    classify: bool = False,
    advance: Callable[[int], None] = lambda images: None,
) -> Collected:
    """Collect from this process's images [n, C, H, W] in [-1, 1], each batch with its numbers.

    count: images over all processes; keep: largest number of images whose features are kept;
    moments: whether to compute mean and covariance.

    Raises UserError, on all processes, for features that are not finite; and what one of them
    raises over its images.
    """
    keep = min(keep, count)
    with world.agreed():
        seen = Moments(extractor.width, world.device) if moments else None
        scores = ClassScores(extractor.classes, count, world.device) if classify else None
        kept = [torch.zeros(0, extractor.width)]
        chosen = _some(count, keep)
        for numbers, images in batches:
            features = extractor(images.to(world.device))
            if seen is not None:
                seen.update(features)
            index = torch.arange(numbers.start, numbers.stop)
            if scores is not None:
                scores.update(extractor.logits(features), index)
            kept.append(features.cpu()[chosen[index]])
            advance(len(numbers))
    statistics = seen.statistics(world) if seen is not None else None
    return Collected(
        statistics,
        world.rows(torch.cat(kept)) if keep else None,
        scores.estimate(world) if scores is not None else None,
    )
