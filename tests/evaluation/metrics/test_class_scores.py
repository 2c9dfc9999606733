"""The inception score against its definition, and where it is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from fasttrain.evaluation.metrics.class_scores import ClassScores
from fasttrain.system.processes import World

ALONE = World(0, 1, torch.device("cpu"))


def score(logits: Tensor, batch: int = 7) -> ClassScores:
    scores = ClassScores(logits.shape[1], len(logits))
    for index in torch.arange(len(logits)).split(batch):
        scores.update(logits[index], index)
    return scores


def by_definition(logits: Tensor) -> list[float]:
    """Of each tenth, image by image."""
    found, n = [], len(logits)
    for part in range(10):
        rows = logits[[i for i in range(n) if i * 10 // n == part]].double().softmax(1)
        mean = rows.mean(0)
        kl = [sum(float(p * (p / q).log()) for p, q in zip(row, mean, strict=True)) for row in rows]
        found.append(math.exp(sum(kl) / len(kl)))
    return found


def test_it_is_that_of_the_definition_in_any_batches() -> None:
    logits = torch.randn(53, 6, generator=torch.Generator().manual_seed(0)) * 3
    parts = by_definition(logits)
    mean = sum(parts) / 10
    deviation = (sum((x - mean) ** 2 for x in parts) / 9) ** 0.5
    for batch in (1, 7, 53):
        found = score(logits, batch).estimate(ALONE)
        assert found.value == pytest.approx(mean, rel=1e-12)
        assert found.high is not None
        assert found.high - mean == pytest.approx(2.262 * deviation / 10**0.5, rel=1e-9)


def test_sure_of_all_classes_it_is_their_number_and_of_one_it_is_one() -> None:
    sure = 500 * torch.eye(8).repeat(40, 1)
    assert score(sure).estimate(ALONE).value == pytest.approx(8)
    assert score(sure[:1].repeat(40, 1)).estimate(ALONE).value == pytest.approx(1)
    assert score(torch.zeros(40, 8)).estimate(ALONE).value == pytest.approx(1)


def test_fewer_images_than_parts_have_no_interval() -> None:
    found = score(torch.randn(6, 4)).estimate(ALONE)
    assert found.value >= 1
    assert found.low is None
