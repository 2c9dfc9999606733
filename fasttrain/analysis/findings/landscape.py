"""Distances between models: of their images, of their weights' loss, and of two rankings.

paired_distance(student_images, teacher_images)           # of images from the same latents
along_line(first, second, loss, points=11)                # loss at weights between two models
rank_correlation(distances, qualities)                    # Spearman's
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["along_line", "barrier", "interpolate", "paired_distance", "rank_correlation"]

Weights = Mapping[str, Tensor]


def paired_distance(one: Tensor, other: Tensor) -> float:
    """Root mean square of the difference of rows that belong together, [N, ...] each."""
    return float((one.double() - other.double()).square().mean().sqrt())


def interpolate(first: Weights, second: Weights, share: float) -> dict[str, Tensor]:
    """first + share (second - first); tensors that are no floating point numbers are `first`'s.

    Raises KeyError when a name is missing in `second`.
    """
    return {
        name: torch.lerp(value, second[name].to(value.dtype), share)
        if value.is_floating_point()
        else value
        for name, value in first.items()
    }


def along_line(
    first: Weights, second: Weights, loss: Callable[[dict[str, Tensor]], float], points: int = 11
) -> list[tuple[float, float]]:
    """(share, loss) at evenly spaced weights from `first` (0) to `second` (1)."""
    shares = [k / (points - 1) for k in range(points)]
    return [(share, loss(interpolate(first, second, share))) for share in shares]


def barrier(line: Sequence[tuple[float, float]]) -> float:
    """How far the loss rises above the straight line between its ends, at most; 0: it does not."""
    start, end = line[0][1], line[-1][1]
    return max(value - (start + share * (end - start)) for share, value in line)


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float:
    """Spearman's rank correlation, -1 to 1; equal values share their mean rank. 0 where one of them
    is constant."""
    ranks = torch.stack([_ranks(one), _ranks(other)])
    centred = ranks - ranks.mean(1, keepdim=True)
    norms = centred.square().sum(1).sqrt()
    if not norms.prod():
        return 0.0
    return float((centred[0] * centred[1]).sum() / norms.prod())


def _ranks(values: Sequence[float]) -> Tensor:
    x = torch.tensor(values, dtype=torch.float64)
    below, equal = (x[:, None] > x).sum(1), (x[:, None] == x).sum(1)
    return below + (equal + 1) / 2
