"""The stop rule on constructed scores, and what it says."""

from __future__ import annotations

import math
from typing import Any

import pytest

from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.training.run.stop_rule import StopRule


def rule_of(*changes: str) -> StopRule:
    return StopRule(load_settings("digits-d2o-f", list(changes), FinetuneSettings))


def evaluation(score: float, samples: int = 80) -> dict[str, Any]:
    return {"metric": "fd", "score": score, "protocol": {"samples": samples, "pair": (1, 2)}}


def test_a_run_ends_after_so_many_evaluations_without_a_better_one() -> None:
    rule = rule_of("stop.patience=2")
    since = []
    for k, score in enumerate((50.0, 40.0, 45.0, 39.0, 39.0, 44.0)):
        assert not rule.spent
        since.append(rule.note(evaluation(score), 1000 * (k + 1))["since_best"])
    assert since == [0, 0, 1, 0, 1, 2]
    assert rule.spent
    assert rule.sentence == (
        "fd has not improved for 2 evaluations; its best, 39, is that of the checkpoint at 4,000 "
        "images"
    )


def test_the_count_goes_on_from_a_checkpoint() -> None:
    rule = rule_of("stop.patience=2")
    for score in (50.0, 60.0):
        rule.note(evaluation(score), 1000)
    other = rule_of("stop.patience=2")
    other.load(rule.state())
    assert (other.best, other.since, other.spent) == (50.0, 1, False)
    assert other.note(evaluation(51.0), 3000) == {"since_best": 2.0, "stopped_early": 1.0}
    more_patient = rule_of("stop.patience=3")
    more_patient.load(other.state())
    assert not more_patient.spent


def test_scores_of_another_protocol_are_not_compared() -> None:
    rule = rule_of("stop.patience=1")
    rule.note(evaluation(10.0), 1000)
    rule.note(evaluation(20.0, samples=90), 2000)
    assert (rule.best, rule.since) == (20.0, 0)


def test_values_that_are_not_finite_never_improve() -> None:
    rule = rule_of("stop.patience=2")
    rule.note(evaluation(math.nan), 1000)
    rule.note(evaluation(math.inf), 2000)
    assert rule.spent
    assert rule.sentence.endswith("it was never finite")
    assert rule.state() is not None


def test_without_patience_nothing_is_counted() -> None:
    rule = rule_of()
    assert rule.note(evaluation(1.0), 1000) == {}
    assert rule.state() is None
    assert not rule.spent


def test_patience_needs_evaluations() -> None:
    with pytest.raises(UserError, match=r"set evaluate\.every, too"):
        rule_of("stop.patience=2", "evaluate.every=0")
