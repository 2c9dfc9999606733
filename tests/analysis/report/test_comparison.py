"""`fasttrain compare`: the page of several runs, and the same for a script."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fasttrain.analysis.report import comparison
from fasttrain.analysis.report.comparison import Compared, open_all, write_comparison
from fasttrain.checkpoints.checkpoint import Step
from fasttrain.evaluation.protocol import protocol_of
from tests.analysis.report.support import FD, Page
from tests.runs.calling import call


@pytest.fixture(scope="module")
def pair(made: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The fine-tuning run, and a copy with another seed, rate, curve and metrics."""
    other = tmp_path_factory.mktemp("other") / "second"
    shutil.copytree(made["tuned"], other)
    config = (other / "config.yaml").read_text()
    (other / "config.yaml").write_text(config.replace("seed: 0", "seed: 3"))
    lines = [json.loads(line) for line in (other / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"loss/generator": 4.0} if "loss/generator" in line else {}
    (other / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = json.loads((other / "evaluation.json").read_text())
    found["fd"] = FD | {"one_step_after": 19.5}
    (other / "evaluation.json").write_text(json.dumps(found))
    extractor = {"extractor": "inception", "weights": "6726825d0000", "rounding": "uint8"}
    reference = {"data": "d", "images": 9, "size": 8, "resized": False, "content": "abc"}
    result = {
        "metrics": {"fd": {"value": 3.25, "low": 3.0, "high": 3.5}},
        "protocol": protocol_of(extractor, reference, images=50_000, components=None),
        "model": {"name": "second", "weights": "0", "images_seen": 6016, "sampler": "one step"}
        | {"seeds": "0-49999", "classes": None},
    }
    (other / "evaluation-inception.json").write_text(json.dumps(result))
    return made["tuned"], other


@pytest.fixture(scope="module")
def page(pair: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Page:
    out = tmp_path_factory.mktemp("page") / "compare.html"
    return Page(write_comparison(open_all(pair), out).read_text(encoding="utf-8"))


def test_the_same_seeds_of_each_run(page: Page, made: dict[str, Any]) -> None:
    mine = made["page"].images
    assert page.images["real_floor"][0].tobytes() == mine["real_floor"][0].tobytes()
    for name in ("run-0", "run-1"):  # the copy has the same weights
        assert page.images[name][0].tobytes() == mine["one_step_after"][0].tobytes()
    assert "One step" in page.text["run-1"]


def test_curves_settings_and_metrics_by_protocol(page: Page, pair: tuple[Path, Path]) -> None:
    losses = page.text["chart-losses-generator"]
    assert f"{pair[0].name}: 2 to 2" in losses
    assert "second: 4 to 4" in losses
    assert "chart-losses-discriminator" in page.text
    assert page.cells["seed"] == ["seed", "0", "3"]
    assert [name for name in page.cells if name] == ["seed"]  # they differ in nothing else
    tables = [attributes for tag, attributes in page.tags if "data-code" in attributes]
    assert len(tables) == 2
    best = [a for tag, a in page.tags if tag == "td" and "best" in (a.get("class") or "")]
    assert len(best) == 5  # fd of one run; both runs' fd_full and kd, which are equal
    assert "Numbers of different tables must not be compared" in page.text["evaluation"]
    assert "<script" not in page.styles
    assert not {tag for tag, _ in page.tags} & {"script", "link", "iframe"}


def test_each_protocol_has_a_chart_of_its_own(
    pair: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def curves(runs: list[Compared]) -> dict[str, list[str]]:
        charts = [chart for chart in comparison.charts(runs) if chart.title.startswith("Fréchet")]
        return {chart.title: [line.label for line in chart.series] for chart in charts}

    names = [pair[0].name, "second"]
    (together,) = curves(open_all(pair)).values()  # by the same settings
    assert together == names
    config = pair[1] / "config.yaml"
    text = config.read_text()
    config.write_text(text.replace("samples: null", "samples: 500"))
    assert config.read_text() != text
    try:
        assert list(curves(open_all(pair)).values()) == [[name] for name in names]
    finally:
        config.write_text(text)
    codes = {pair[0]: "0a0a0a0a", pair[1]: "0b0b0b0b"}
    state = Step.state.fget  # type: ignore[attr-defined]

    def with_code(self: Step) -> dict[str, Any]:
        code = codes[self.path.parents[1]]
        return state(self) | {"evaluation": {"protocol": {"code": code}}}

    monkeypatch.setattr(Step, "state", property(with_code))
    found = curves(open_all(pair))
    assert [title.rpartition(" ")[2] for title in found] == list(codes.values())
    assert list(found.values()) == [[name] for name in names]


def test_samplers_and_weights_are_told_where_they_differ(made: dict[str, Any]) -> None:
    runs = open_all([made["diffusion"], made["tuned"]])
    runs[0].stats.append({"images": 64, "fd": 3.0})
    labels = [line.label for chart in comparison.charts(runs) if chart.name.startswith("fd-")
              for line in chart.series]  # fmt: skip
    assert labels == [
        f"{made['diffusion'].name}, 18 Heun steps (35 evaluations)",
        f"{made['tuned'].name}, one step at noise level 80",
    ]
    rows = [
        {"run": name, "seeds": "0-9", "vae": None, "metrics": {}} | differ
        for name, differ in (
            ("a", {"sampler": "one step", "weights": "01"}),
            ("a", {"sampler": "two steps", "weights": "01"}),
        )
    ]
    assert comparison._marked({"rows": rows})["differ"] == ["sampler"]


def test_for_a_script(pair: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "compare", *pair, "--json")
    facts = json.loads(out)
    assert status == 0
    assert facts["settings"] == {"seed": [0, 3]}
    rows = {row["run"]: row["metrics"]["fd"] for row in facts["metrics"][0]["rows"]}
    assert rows == {None: 1.93, pair[0].name: 24.5, "second": 19.5}
    assert [row["images"] for row in facts["runs"]] == [6016, 6016]


def test_runs_of_two_trainings(made: dict[str, Any]) -> None:
    runs = open_all([made["diffusion"], made["tuned"]])
    facts = comparison.facts_of(runs)
    assert [row["training"] for row in facts["runs"]] == ["pretrain", "finetune"]
    assert facts["settings"]["loss"] == [None, "non_saturating"]
    assert "network.model_channels" not in facts["settings"]
    assert {chart.name for chart in comparison.charts(runs)} >= {"speed", "losses-generator"}


def test_mistakes(made: dict[str, Any], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "c.html"
    for words, said in (
        ([made["tuned"]], "takes 2 to 8 runs, not 1"),
        ([made["tuned"], made["tuned"] / "."], "is there twice"),
        ([made["tuned"], tmp_path], "is not a run directory"),
    ):
        status, _, error = call(capsys, "compare", *words, "--out", out)
        assert (status, error.count("\n"), said in error) == (2, 1, True), error
    assert not out.exists()
