"""Copies are counted as if every image was compared with every other."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from fasttrain_data import run_conversion, run_verification
from fasttrain_data.permutation import SHARD_WRITER, permutation
from fasttrain_data.sources.base import ArraySource


class Few(ArraySource):
    """Images of one pixel, so that many are alike."""

    shape = (1, 1, 1)
    classes = ("a", "b", "c")
    identity = {"kind": "few"}  # noqa: RUF012

    def __init__(self, values: np.ndarray, labels: np.ndarray) -> None:
        self.values, self.labels = values, labels

    def member(self, item: int) -> str:
        return str(item)

    def pixels(self, item: int) -> np.ndarray:
        return np.full(self.shape, self.values[item], np.uint8)


def test_copies_and_contradictions(tmp_path: Path, rng: np.random.Generator) -> None:
    values, labels = rng.integers(0, 200, 300), rng.integers(0, 3, 300)
    index = run_conversion(Few(values, labels), tmp_path / "set").index
    assert index.images == 300
    found = run_verification(tmp_path / "set")
    first: dict[int, int] = {}
    copies = contradictions = 0
    for item in permutation(300, SHARD_WRITER, 0).tolist():
        value, label = int(values[item]), int(labels[item])
        copies += value in first
        contradictions += first.setdefault(value, label) != label
    assert (found.copies, found.contradictions) == (copies, contradictions)
    assert contradictions > 50
