"""The loop's evaluator: its numbers are those of the plain functions, and its protocol says which;
and what a checkpoint keeps of them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fasttrain.config import load_settings
from fasttrain.distributed import start
from fasttrain.errors import UserError
from fasttrain.evaluation import evaluate_features, precision_recall
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.run import Run
from fasttrain.settings import PretrainSettings


def settings_of(data: Path, **evaluate: Any) -> PretrainSettings:
    changes = [f"data.path={data}", *(f"evaluate.{k}={v}" for k, v in evaluate.items())]
    return load_settings("digits-edm", changes, PretrainSettings)


def test_the_numbers_are_those_of_the_plain_functions_and_inception_adds_its_score(
    shards: Path, inception_file: Path
) -> None:
    plain = Evaluator(settings_of(shards, samples=70))
    found = plain.real_floor()
    expected = evaluate_features(*plain.real) | precision_recall(*plain.real)
    assert found == {name: value for name, value in expected.items() if name != "n"}
    few = {"samples": 4, "components": "null", "extractor": "inception", "weights": inception_file}
    other = Evaluator(settings_of(shards, **few))
    floor = other.real_floor()
    assert set(floor) == {*found, "is"}
    assert floor["fd"] == floor["fd_full"]
    one, two = plain.protocol(), other.protocol()
    assert one["code"] != two["code"]
    assert (one["images"], one["components"], one["reference"]["images"]) == (70, 64, 70)
    assert (two["images"], two["components"]) == (4, None)
    assert two["extractor"]["extractor"] == "inception"


def test_what_cannot_be_evaluated_is_said_before_anything(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("FASTTRAIN_WEIGHTS", raising=False)
    with pytest.raises(UserError, match="no weights of inception"):
        Evaluator(settings_of(shards, extractor="inception"))
    with pytest.raises(UserError, match="look at 3 neighbours"):
        Evaluator(settings_of(shards, samples=3, components=2))
    with pytest.raises(UserError, match=r"evaluate\.components below that"):
        Evaluator(settings_of(shards, samples=64))
    for wrong in ({"metric": "is"}, {"weights": shards}):
        with pytest.raises(UserError, match=f"evaluate: {next(iter(wrong))}"):
            settings_of(shards, **wrong)


@pytest.mark.parametrize(("metric", "score"), [("kd", 0.25), ("precision", -0.75), ("fd", 9.0)])
def test_a_checkpoint_keeps_a_score_that_is_lower_for_the_better(metric: str, score: float) -> None:
    values = {"fd": 9.0, "kd": 0.25, "precision": 0.75}
    settings = SimpleNamespace(evaluate=SimpleNamespace(metric=metric))
    run = SimpleNamespace(settings=settings, world=start(), protocol=lambda: {"code": "0a"})
    assert Run._judged(run, values) == {  # type: ignore[arg-type]
        "metric": metric,
        "score": score,
        "values": values,
        "protocol": {"code": "0a"},
    }
