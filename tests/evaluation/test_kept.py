"""Tables in a run directory: one for each checkpoint, and what their notes say."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from fasttrain.analysis.report.files import evaluation_of
from fasttrain.checkpoints import checkpoint
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.evaluation.kept import card_quality, kept_texts
from fasttrain.evaluation.metrics.resampling import Estimate
from fasttrain.evaluation.notes import noted, unequal_classes
from fasttrain.evaluation.result import read_result, text
from fasttrain.evaluation.summary import evaluate_run


def another(run: Path, images: int) -> None:
    """A checkpoint of the same weights at another number of images."""
    folder = run / "checkpoints"
    step = checkpoint.steps(folder)[-1]
    tensors = {name: step.tensors(name) for name in ("network", "ema")}
    checkpoint.save(folder, images, tensors, step.state | {"images": images})


def test_the_table_of_a_checkpoint_replaces_no_other_ones(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "real_floor", lambda self: {"fd": Estimate(1.0)})
    monkeypatch.setattr(Evaluator, "__call__", lambda self, *_, **__: {"fd": Estimate(3.0)})
    newest = checkpoint.steps(run / "checkpoints")[-1].images
    another(run, 32)
    evaluate_run(run)
    table = (run / "evaluation.json").read_bytes()
    evaluate_run(run, "32")
    assert (run / "evaluation.json").read_bytes() == table
    before = read_result(run / "evaluation-at-32.json")
    assert before["model"]["images_seen"] == 32
    assert "after 32 images" in "".join(kept_texts(run))
    another(run, newest + 64)
    evaluate_run(run)
    assert read_result(run / "evaluation.json")["model"]["images_seen"] == newest + 64
    moved = read_result(run / f"evaluation-at-{newest}.json")
    assert moved["rows"] == json.loads(table)["rows"]
    for images in (32, newest, newest + 64):  # of the report and of the model card
        found, warning = evaluation_of(run, images)
        assert (found["fd"]["one_step"], warning) == (3.0, "")
        quality = card_quality(run, images)
        assert quality is not None
        assert "| one step | 3 |" in quality.text
    assert "32 images, the page is of 33" not in evaluation_of(run, 33)[1]
    assert f"the checkpoint at {newest + 64:,} images" in evaluation_of(run, 33)[1]


def test_the_best_checkpoint_is_said_to_be_chosen_by_its_images(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Evaluator, "real_floor", lambda self: {"fd": Estimate(1.0)})
    monkeypatch.setattr(Evaluator, "__call__", lambda self, *_, **__: {"fd": Estimate(3.0)})
    folder = run / "checkpoints"
    step = checkpoint.steps(folder)[-1]
    tensors = {name: step.tensors(name) for name in ("network", "ema")}
    state = step.state | {"evaluation": {"metric": "fd", "score": 3.0}}
    checkpoint.save(folder, step.images, tensors, state)
    assert "the best by fd on this reference and these seeds" in text(evaluate_run(run, "best"))
    assert "note" not in evaluate_run(run)


@pytest.mark.parametrize(
    ("shares", "classes", "said"),
    [
        ((0.5, 0.5), 2, None),
        ((0.33, 0.66), 2, None),
        ((0.9, 0.1), 2, "the reference's classes have 10 to 90 % of its images"),
        ((1.0, 0.0), 2, "have 0 to 1e+02 % of its images"),
        ((0.9, 0.1), 0, None),  # a model without classes
        ((), 2, None),  # a reference without classes
    ],
)
def test_unequal_classes_of_the_reference_are_said(
    shares: tuple[float, ...], classes: int, said: str | None
) -> None:
    comparison: Any = SimpleNamespace(reference=SimpleNamespace(shares=shares), classes=classes)
    found = unequal_classes(comparison)
    assert (found is None) == (said is None)
    assert said is None or said in (found or "")
    assert noted(None, found) == found
