"""The committed counts of activation memory follow from today's networks."""

from __future__ import annotations

import json

import pytest

from benchmarks import memory

RESULT = json.loads(memory.RESULTS.read_text())["bytes_per_image"]


@pytest.mark.filterwarnings("ignore:Accessing the data pointer")
@pytest.mark.parametrize("column", memory.COLUMNS)
def test_the_counts_are_of_todays_code(column: str) -> None:
    assert memory.kept_bytes("ncsnpp-32", *memory.COLUMNS[column]) == RESULT["ncsnpp-32"][column]


def test_frozen_convolutions_and_fused_ops_halve_the_memory() -> None:
    assert set(RESULT) == set(memory.PUBLISHED)
    for row in RESULT.values():
        assert row["ours"] < 0.5 * row["eager"]
        assert row["ours"] < row["library"]
        assert row["ours, all training, recompute_norms"] < 0.7 * row["ours, all training"]
