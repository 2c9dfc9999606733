"""The mean ratio of distances over extractors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from fasttrain.evaluation import ratio
from fasttrain.evaluation.ratio import evaluate_ratio, mean_ratio, ratio_text
from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from tests.analysis.report.support import SMALL, fabricate


def test_the_mean_of_the_ratios_is_not_the_ratio_of_the_means() -> None:
    assert mean_ratio({"a": (30.0, 10.0), "b": (5.0, 5.0)}) == pytest.approx(2.0)
    with pytest.raises(UserError, match="b: other real images have the distance 0"):
        mean_ratio({"a": (30.0, 10.0), "b": (5.0, 0.0)})


def test_the_text_has_a_line_for_each_extractor() -> None:
    rows = {"lite2": {"fd": 30.0, "floor": 10.0}, "dino_vits16": {"fd": 5.0, "floor": 5.0}}
    lines = ratio_text({"extractors": rows, "fdr": 2.0}).splitlines()
    assert [line.split()[-1] for line in lines] == ["ratio", "3.00", "1.00", "2.00"]


def test_the_runs_own_extractor_has_the_weights_of_its_settings(
    shards: Path, inception_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTTRAIN_WEIGHTS", raising=False)
    own = f"evaluate={{extractor: inception, weights: {inception_file}, components: null}}"
    changes = [f"data.path={shards}", f"run={tmp_path / 'run'}", *SMALL, own]
    settings = load_settings("digits-edm", changes, PretrainSettings)
    fabricate(settings, 1)
    asked: list[tuple[str, Path | None]] = []

    def evaluator(settings: PretrainSettings, *_: Any, **__: Any) -> Any:
        asked.append((settings.evaluate.extractor, settings.evaluate.weights))
        raise UserError("enough")

    monkeypatch.setattr(ratio, "Evaluator", evaluator)
    with pytest.raises(UserError, match="no weights of dino_vits16"):
        evaluate_ratio(settings.run, ["inception", "dino_vits16"])
    assert asked == []
    with pytest.raises(UserError, match="enough"):
        evaluate_ratio(settings.run, ["inception", "lite2"])
    assert asked == [("inception", inception_file)]
