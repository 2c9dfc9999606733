"""The inception score (Salimans et al., arXiv 1606.03498): images should each look like one class,
and together like all of them.

    IS = exp( mean_x KL( p(y|x) || mean_x p(y|x) ) )  =  exp( mean_x sum p log p - sum q log q )

It is the mean over ten parts of the images, in the order of their seeds, as in publications. It
does not depend on the reference, and its classes are ImageNet's.

    scores = ClassScores(extractor.classes, images=50_000, device=device)
    scores.update(extractor.logits(features), index)
    scores.estimate(world)
"""

from __future__ import annotations

import torch
from torch import Tensor

from fasttrain.evaluation.metrics.resampling import Estimate
from fasttrain.system.processes import World

__all__ = ["SPLITS", "ClassScores"]

SPLITS = 10
T_SPLITS = 2.262
"""The 97.5 % quantile of Student's t with 9 degrees of freedom."""


class ClassScores:
    """Sums of class probabilities and of their negative entropies over each tenth of the images."""

    def __init__(self, classes: int, images: int, device: torch.device | None = None) -> None:
        self.images = images
        self.sums = torch.zeros(SPLITS, classes + 2, dtype=torch.float64, device=device)

    def update(self, logits: Tensor, index: Tensor) -> None:
        """Add logits [n, classes] of the images with these numbers, int64 [n]."""
        logs = logits.to(self.sums).log_softmax(1)
        p = logs.exp()
        entropy = torch.where(p > 0, p * logs, 0).sum(1, keepdim=True)
        rows = torch.cat([p, entropy, torch.ones_like(entropy)], 1)
        self.sums.index_add_(0, index.to(self.sums.device) * SPLITS // self.images, rows)

    def estimate(self, world: World) -> Estimate:
        """Mean of the tenths over all processes' images, with an interval from their variance."""
        sums = world.sum(self.sums.clone()).cpu()
        sums = sums[sums[:, -1] > 0]
        means = sums[:, :-1] / sums[:, -1:]
        q = means[:, :-1]
        divergence = means[:, -1] - torch.where(q > 0, q * q.log(), 0).sum(1)
        scores = divergence.exp()
        value = float(scores.mean())
        if len(scores) < SPLITS:
            return Estimate(value, why="too few images")
        return Estimate.around(value, T_SPLITS * float(scores.std()) / SPLITS**0.5)
