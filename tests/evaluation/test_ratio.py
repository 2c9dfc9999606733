"""The mean ratio of distances over extractors."""

from __future__ import annotations

import pytest

from fasttrain.evaluation.ratio import mean_ratio, ratio_text
from fasttrain.system.errors import UserError


def test_the_mean_of_the_ratios_is_not_the_ratio_of_the_means() -> None:
    assert mean_ratio({"a": (30.0, 10.0), "b": (5.0, 5.0)}) == pytest.approx(2.0)
    with pytest.raises(UserError, match="b: other real images have the distance 0"):
        mean_ratio({"a": (30.0, 10.0), "b": (5.0, 0.0)})


def test_the_text_has_a_line_for_each_extractor() -> None:
    rows = {"lite2": {"fd": 30.0, "floor": 10.0}, "dino_vits16": {"fd": 5.0, "floor": 5.0}}
    lines = ratio_text({"extractors": rows, "fdr": 2.0}).splitlines()
    assert [line.split()[-1] for line in lines] == ["ratio", "3.00", "1.00", "2.00"]
