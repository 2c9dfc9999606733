"""Improved precision and recall against brute force, and what they must be by their definition."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fasttrain.evaluation.metrics import neighbours
from fasttrain.evaluation.metrics.neighbours import precision_recall
from fasttrain.system.errors import UserError


def normal(n: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(n, width, generator=torch.Generator().manual_seed(seed))


def brute_force(real: Tensor, fake: Tensor, k: int) -> dict[str, float]:
    """From differences, a pair at a time."""

    def gap(x: Tensor, y: Tensor) -> float:
        return float((x.double() - y.double()).square().sum().sqrt())

    def share(rows: Tensor, centres: Tensor) -> float:
        radii = [
            sorted(gap(a, b) for j, b in enumerate(centres) if j != i)[k - 1]
            for i, a in enumerate(centres)
        ]
        inside = [
            any(gap(row, centre) <= radius for centre, radius in zip(centres, radii, strict=True))
            for row in rows
        ]
        return sum(inside) / len(inside)

    return {"precision": share(fake, real), "recall": share(real, fake)}


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize(("n", "m"), [(40, 25), (17, 60)])
def test_they_are_those_of_brute_force_in_any_blocks(
    n: int, m: int, k: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, fake = normal(n, 4), 0.8 * normal(m, 4, 1) + 0.9
    expected = brute_force(real, fake, k)
    assert expected["precision"] > 0
    assert 0 < expected["recall"] < 1
    for rows, columns in ((1024, 4096), (7, 5), (1, 1)):
        monkeypatch.setattr(neighbours, "ROWS", rows)
        monkeypatch.setattr(neighbours, "COLUMNS", columns)
        assert precision_recall(real, fake, k) == expected


def test_copies_far_from_the_origin_lie_inside_and_only_they() -> None:
    """Differences that float64's inner products can barely see do not push copies out."""
    real = normal(30, 8) * 1e-3 + 1e3
    assert precision_recall(real, real[:11]) == {"precision": 1.0, "recall": pytest.approx(1, 0.7)}
    assert precision_recall(real, real + 1) == {"precision": 0.0, "recall": 0.0}
    fives = real.repeat(5, 1)  # every row's three nearest are its own copies
    assert precision_recall(fives, fives) == {"precision": 1.0, "recall": 1.0}


def test_a_mode_that_is_missing_costs_recall_and_noise_costs_precision() -> None:
    real = torch.cat([normal(200, 3), normal(200, 3, 1) + 50])
    one_mode = precision_recall(real, normal(300, 3, 2))
    assert one_mode["precision"] > 0.9
    assert one_mode["recall"] == pytest.approx(0.5, abs=0.05)
    noisy = precision_recall(real, torch.cat([normal(200, 3, 2), normal(200, 3, 3) * 30 - 200]))
    assert noisy["precision"] == pytest.approx(0.5, abs=0.05)


def test_rows_done_are_told_and_too_few_are_refused() -> None:
    told: list[int] = []
    precision_recall(normal(9, 2), normal(14, 2, 1), advance=told.append)
    assert sum(told) == 9 + 2 * 14
    with pytest.raises(UserError, match=r"3 generated images: .* 3 neighbours"):
        precision_recall(normal(9, 2), normal(3, 2))
