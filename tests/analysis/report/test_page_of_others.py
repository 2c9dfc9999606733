"""The report of runs that lack something, say something else or are hostile."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fasttrain.analysis.report.page import write_report
from fasttrain.analysis.report.template import duration, number
from fasttrain.evaluation.protocol import protocol_of
from fasttrain.models.audit import audit
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings, to_yaml
from fasttrain.system.errors import UserError
from tests.analysis.report.support import FD, new_audited, page_of


@pytest.mark.usefixtures("quick")
def test_hostile_names_are_text(tuned: Path) -> None:
    evil = "\"'><script>alert(1)<!--</pre>&amp;"
    run = tuned.rename(tuned.parent / "<b onclick=alert(1)>\"'&lt;")
    settings = load_settings(
        str(run / "config.yaml"),
        [f"engine.deepspeed={{comms_logger: {json.dumps(evil)}}}"],
        FinetuneSettings,
    )
    (run / "config.yaml").write_text(to_yaml(settings))
    evaluation = json.loads((run / "evaluation.json").read_text())
    evaluation["fd"][evil] = 3.0
    evaluation["protocol"][evil] = evil
    evaluation["kd"]["real_floor"] = float("nan")
    (run / "evaluation.json").write_text(json.dumps(evaluation))
    page = page_of(run)
    assert not {tag for tag, _ in page.tags} & {"script", "b onclick=alert(1)"}
    assert not any("onclick" in attributes for _, attributes in page.tags)
    assert run.name in page.text[None]
    assert page.text["evaluation"].count(evil) == 3
    assert "alert(1)" in page.text["settings"]


@pytest.mark.usefixtures("quick")
def test_a_two_step_generator_is_called_one(tuned: Path) -> None:
    config = (tuned / "config.yaml").read_text()
    (tuned / "config.yaml").write_text(config.replace("sigma_mid: null", "sigma_mid: 0.8"))
    evaluation = json.loads((tuned / "evaluation.json").read_text())
    evaluation["recall"] = dict.fromkeys(FD, 0.625)
    (tuned / "evaluation.json").write_text(json.dumps(evaluation))
    page = page_of(tuned)
    head = " ".join(page.text[None].split())
    assert "(fd) of two-step images" in head
    assert "Two evaluations now have 1.07 times" in head
    assert "two-step generator (D2O-F" in head
    assert "two steps, after" in head
    assert "two steps: " in page.text["chart-fd"]
    for row, when in (("one_step_before", "before"), ("one_step_after", "after")):
        assert page.cells[row][0] == f"two steps, {when} fine-tuning"
        assert page.cells[row][-1] == "0.625"
    assert "one step" not in head


@pytest.mark.usefixtures("quick")
def test_without_numbers_the_page_says_how_to_get_them(tuned: Path) -> None:
    (tuned / "evaluation.json").unlink()
    page = page_of(tuned)
    assert "verdict" not in page.text
    assert f"fasttrain evaluate {tuned}" in page.text["no-evaluation"]
    assert f"fasttrain evaluate {tuned}" in page.text["evaluation"]
    assert "one step: 100 to 100" in page.text["chart-fd"]


@pytest.mark.usefixtures("quick")
def test_the_curve_is_that_of_the_metric_asked_for(tuned: Path) -> None:
    config = (tuned / "config.yaml").read_text()
    (tuned / "config.yaml").write_text(config.replace("metric: fd", "metric: precision"))
    lines = [json.loads(line) for line in (tuned / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        if "fd" in line:
            line["precision"] = line["images"] / 10_000
    (tuned / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    page = page_of(tuned)
    assert "Precision (higher is better)" in page.text["chart-precision"]
    assert "one step: 0.16 to 0.48 at 4.8k images" in page.text["chart-precision"]
    assert "real images" not in page.text["chart-precision"]  # a level that is not known
    assert "chart-fd" not in page.text


@pytest.mark.usefixtures("quick")
def test_results_of_other_protocols_stand_under_the_table_with_them(tuned: Path) -> None:
    assert "measured" not in page_of(tuned).text
    evil = "<b onclick=alert(1)>"
    extractor = {"extractor": "inception", "weights": "6726825d0000", "rounding": "uint8"}
    reference = {"data": evil, "images": 9, "size": 8, "resized": False, "content": "abc"}
    model = {"name": evil, "weights": "0", "images_seen": 6016, "sampler": "one step"}
    result = {
        "metrics": {"fd": {"value": 3.25, "low": 3.0, "high": 3.5}},
        "protocol": protocol_of(extractor, reference, images=50_000, components=None),
        "model": model | {"seeds": "0-49999", "classes": None},
    }
    (tuned / "evaluation-inception-0.json").write_text(json.dumps(result))
    (tuned / "evaluation-spoilt.json").write_text("{")
    page = page_of(tuned)
    for part in ("3.25   3 to 3.5", "weights 6726825d0000", "50,000 images", evil):
        assert part in page.text["measured"]
    assert not any("onclick" in attributes for _, attributes in page.tags)


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("content", ["{", "[]", '{"fd": 3}', '{"fd": {"a": "low"}}', '{"fd": {}}'])
def test_unreadable_numbers(content: str, tuned: Path) -> None:
    (tuned / "evaluation.json").write_text(content)
    page = page_of(tuned)
    assert "evaluation.json cannot be read." in page.text[None]
    assert "verdict" not in page.text


@pytest.mark.usefixtures("quick")
def test_numbers_of_another_checkpoint_are_told_apart(tuned: Path) -> None:
    evaluation = json.loads((tuned / "evaluation.json").read_text())
    evaluation["protocol"]["images_seen"] = 4096
    (tuned / "evaluation.json").write_text(json.dumps(evaluation))
    assert "of the checkpoint at 4,096 images, the page is of 6,016" in page_of(tuned).text[None]


@pytest.mark.usefixtures("quick")
def test_nothing_measured_and_no_audit(tuned: Path, made: dict[str, Any]) -> None:
    for name in ("stats.jsonl", "audit.json", "evaluation.json"):
        (tuned / name).unlink()
    shutil.rmtree(tuned / "samples")
    page = page_of(tuned)
    assert "No curves yet" in page.text["curves"]
    assert "samples/ has none" in page.text["curves"]
    counts = audit(new_audited(made["settings"])).total
    assert f"{counts.trainable:,}" in page.text["audit"]


def test_base_model_and_data_have_gone(tuned: Path, made: dict[str, Any]) -> None:
    settings = load_settings(
        str(tuned / "config.yaml"),
        ["init=/nowhere/edm", "data.path=/nowhere/data"],
        FinetuneSettings,
    )
    (tuned / "config.yaml").write_text(to_yaml(settings))
    page = page_of(tuned)
    assert "Left out: no shards at /nowhere/data" in page.text["real_floor"]
    for name in ("teacher_18", "one_step_before", "one_step_after"):  # of what the run has kept
        shown, before = page.images[name][0], made["page"].images[name][0]
        assert shown.tobytes() == before.tobytes()
    (tuned / "base.safetensors").unlink()
    page = page_of(tuned)
    for name in ("teacher_18", "one_step_before", "one_step_after"):
        assert "base.safetensors is missing or damaged" in page.text[name]
        assert name not in page.images


def test_pretraining_run(made: dict[str, Any]) -> None:
    run = made["diffusion"]
    line = {"images": 2560, "loss/denoising": 0.5, "seconds": 2.0}
    (run / "stats.jsonl").write_text(json.dumps(line) + "\n")
    page = page_of(run)
    assert "A diffusion model" in page.text[None]
    assert "denoising: 0.5 to 0.5 at 2.56k images" in page.text["chart-denoising"]
    assert "100.0 %" in page.text["audit"]
    assert not {"one_step_before", "one_step_after"} & set(page.images)
    (own,), (teacher,) = page.images["teacher_18"], made["page"].images["teacher_18"]
    assert own.tobytes() != teacher.tobytes()  # it has trained on since the fine-tuning began


def test_no_run_and_no_checkpoint(tuned: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is not a run directory: it has no config\.yaml"):
        write_report(tmp_path)
    shutil.rmtree(tuned / "checkpoints")
    with pytest.raises(UserError, match="has no intact checkpoint") as error:
        write_report(tuned)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59.6, "1 min 0 s"),
        (92.4, "1 min 32 s"),
        (11100, "3 h 5 min"),
        (2e5, "2 d 7 h"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"), [(266.2, "266"), (0.00123, "0.00123"), (999.7, "1,000"), (12345.6, "12,346")]
)
def test_number(value: float, text: str) -> None:
    assert number(value) == text
