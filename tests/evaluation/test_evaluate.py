"""The loop's evaluator: its numbers are those of the plain functions, and its protocol says which;
and what a checkpoint keeps of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain.evaluation import evaluate_features, precision_recall
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.evaluation.metrics.resampling import Estimate
from fasttrain.evaluation.protocol import METRICS, said
from fasttrain.evaluation.result import text, values_of
from fasttrain.evaluation.summary import evaluate_run, rows_of
from fasttrain.models.load import load_model
from fasttrain.sampling.sampler import Sampler
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import World, start
from fasttrain.training.average import Average
from tests.runs.calling import call


def settings_of(data: Path, *changes: str) -> PretrainSettings:
    return load_settings("digits-edm", [f"data.path={data}", *changes], PretrainSettings)


def floor_of(evaluator: Evaluator) -> dict[str, float]:
    return {name: estimate.value for name, estimate in evaluator.real_floor().items()}


def test_the_numbers_are_those_of_the_plain_functions_and_inception_adds_its_score(
    shards: Path, inception_file: Path
) -> None:
    plain = Evaluator(settings_of(shards, "evaluate.samples=70"))
    found = floor_of(plain)
    real = plain.real.features, plain.floor.features
    assert real[0] is not None
    assert real[1] is not None
    expected = evaluate_features(*real) | precision_recall(*real)
    assert found == {name: value for name, value in expected.items() if name != "n"}
    few = ["evaluate.samples=4", "evaluate.components=null", "evaluate.extractor=inception"]
    other = Evaluator(settings_of(shards, *few, f"evaluate.weights={inception_file}"))
    floor = floor_of(other)
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
        Evaluator(settings_of(shards, "evaluate.extractor=inception"))
    with pytest.raises(UserError, match="use 3 neighbours"):
        Evaluator(settings_of(shards, "evaluate={samples: 3, components: 2}"))
    with pytest.raises(UserError, match=r"evaluate\.components below that"):
        Evaluator(settings_of(shards, "evaluate.samples=64"))
    for name, value in (("metric", "is"), ("weights", shards)):
        with pytest.raises(UserError, match=f"evaluate: {name}"):
            settings_of(shards, f"evaluate.{name}={value}")


def test_more_than_the_usual_number_of_images_is_compared_on_request_alone(
    shards: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of ImageNet would take hours, all pairs of it compared on one process's CPU."""
    monkeypatch.setattr("fasttrain.evaluation.evaluate.USUAL", 70)
    assert len(Evaluator(settings_of(shards)).seeds) == 70
    assert len(Evaluator(settings_of(shards, "evaluate.samples=75")).seeds) == 75


def test_a_runs_table_has_all_metrics_and_the_protocol_with_its_code(run: Path) -> None:
    result = evaluate_run(run)
    saved = json.loads((run / "evaluation.json").read_text())
    assert saved == result
    network, info = load_model(run)
    assert info.settings is not None
    evaluator = Evaluator(info.settings)
    made = evaluator(Sampler(), network)
    rows = {"real_floor": evaluator.real_floor(), "one_step": made}
    for row, estimates in rows.items():
        found = result["rows"][row]["metrics"]
        assert {name: found[name]["value"] for name in METRICS if name in found} == pytest.approx(
            {name: estimate.value for name, estimate in estimates.items()}, rel=1e-5
        )
    seen = info.images
    assert result["protocol"] == evaluator.protocol()
    assert result["model"]["images_seen"] == seen
    printed = text(result)
    for line in said(evaluator.protocol()):
        assert line in printed
    assert (
        f"protocol {evaluator.protocol()['code']} (do not compare with numbers of another code"
        in printed
    )
    assert "64 leading components" in printed
    assert f"after {seen:,} images" in printed
    (line,) = (line for line in printed.splitlines() if line.startswith("one step of the"))
    assert line.split()[6:] == [
        f"{values_of(result, name)['one_step']:.{5 if name == 'kd' else 3}f}"
        for name in ("fd", "fd_full", "kd", "precision", "recall")
    ]


def test_a_run_is_evaluated_on_the_device_and_by_the_batch_asked_for(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Any] = []

    def look(self: Evaluator, sampler: Any, network: Any, **options: Any) -> None:
        on = next(network.parameters()).device
        seen.append((self.world.device.type, on.type, self.batch))
        raise UserError("seen")

    monkeypatch.setattr(Evaluator, "real_floor", lambda self: {})
    monkeypatch.setattr(Evaluator, "__call__", look)
    with pytest.raises(UserError, match="seen"):
        evaluate_run(run, world=World(0, 1, torch.device("meta")))
    assert call(capsys, "evaluate", run, "--batch", 7)[0] == 2
    device = start().device.type
    assert seen == [("meta", "meta", 64), (device, device, 7)]


def test_rows_of_a_two_step_generator_are_called_so() -> None:
    one, two = (
        {
            row.name: row.title
            for row in rows_of(load_settings("digits-d2o-f", changes, FinetuneSettings))
        }
        for changes in ([], ["sigma_mid=0.8"])
    )
    assert one["one_step_after"] == "one step, after fine-tuning"
    assert two["one_step_before"] == "two steps, before fine-tuning"
    assert two["one_step_after"] == "two steps, after fine-tuning"
    assert two["teacher_18"] == one["teacher_18"]


@pytest.mark.parametrize(("metric", "score"), [("kd", 0.25), ("precision", -0.75), ("fd", 9.0)])
def test_a_checkpoint_keeps_a_score_that_is_lower_for_the_better(metric: str, score: float) -> None:
    values = {"fd": 9.0, "kd": 0.25, "precision": 0.75}
    settings = load_settings("digits-edm", [f"evaluate.metric={metric}"], PretrainSettings)

    class Known:
        def __call__(self, sampler: Any, network: Any) -> dict[str, Estimate]:
            return {name: Estimate(value) for name, value in values.items()}

        def protocol(self) -> dict[str, str]:
            return {"code": "0a"}

    unused: Any = None
    average = Average(settings, start(), unused, unused, unused, Known())  # type: ignore[arg-type]
    assert average.evaluate(unused) == {
        "metric": metric,
        "score": score,
        "values": values,
        "protocol": {"code": "0a"},
    }
