"""Two numbers that may not be compared have different codes; two that may have the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fasttrain.evaluation.kept import card_quality, kept_texts
from fasttrain.evaluation.protocol import METRICS, protocol_of
from fasttrain.evaluation.result import read_result, text, values_of

EXTRACTOR = {"extractor": "lite2", "resolution": 64, "weights": "0123456789ab", "rounding": "uint8"}
REFERENCE = {
    "data": "photos",
    "images": 150,
    "size": 8,
    "resized": False,
    "content": "ba9876543210",
}


def made(**changes: Any) -> dict[str, Any]:
    values: dict[str, Any] = {"images": 500, "components": 64} | changes
    extractor = EXTRACTOR | values.pop("extractor", {})
    reference = REFERENCE | values.pop("reference", {})
    return protocol_of(extractor, reference, **values)


@pytest.mark.parametrize(
    "change",
    [
        {"images": 501},
        {"components": None},
        {"balanced": False},
        {"extractor": {"weights": "0123456789ac"}},
        {"extractor": {"resolution": 96}},
        {"extractor": {"extractor": "inception"}},
        {"reference": {"content": "ba9876543211"}},
        {"reference": {"images": 149}},
        {"reference": {"size": 16}},
        {"reference": {"resized": True}},
    ],
)
def test_whatever_a_number_depends_on_is_in_its_code(change: dict[str, Any]) -> None:
    assert made(**change)["code"] != made()["code"]


def test_a_name_of_the_reference_is_not() -> None:
    renamed = made(reference={"data": "copy-of-photos"})
    assert renamed["code"] == made()["code"]
    assert renamed["reference"]["data"] == "copy-of-photos"


def result(**changes: Any) -> dict[str, Any]:
    metrics = {
        "fd": {"value": 12.3456, "low": 11.5, "high": 13.25, "why": None},
        "precision": {"value": 0.5, "low": None, "high": None, "why": None},
        "recall": {"value": 0.25, "low": None, "high": None, "why": "not worked out"},
    }
    row = {"title": "run", "sampler": "18 Heun steps (35 evaluations)", "weights": "fedcba987654"}
    return {
        "rows": {"model": row | {"metrics": metrics}},
        "protocol": made(**changes),
        "model": {"name": "run", "images_seen": 6400, "seeds": "0-499", "classes": None},
        "made": {"seconds": 3.0},
        "path": "run/evaluation.json",
    }


def earlier(result: dict[str, Any]) -> dict[str, Any]:
    """As earlier versions wrote it."""
    row = result["rows"]["model"]
    model = result["model"] | {"sampler": row["sampler"], "weights": row["weights"]}
    return {"metrics": row["metrics"], "protocol": result["protocol"], "model": model}


def test_the_text_holds_the_numbers_and_all_of_the_protocol() -> None:
    said = text(result())
    for part in (
        "run after 6,400 images (weights fedcba987654): 18 Heun steps (35 evaluations)",
        "seeds 0-499",
        "12.346   11.5 to 13.25",
        "0.5   none: too few images",
        "0.25   none: not worked out",
        f"protocol {made()['code']} (do not compare with numbers of another code",
        "lite2: resolution 64, weights 0123456789ab, rounding uint8",
        "500 images",
        "photos: 150 images of 8x8; content ba9876543210",
        "64 leading components",
        "3 neighbours",
    ):
        assert part in said, part
    assert "all dimensions" in text(result(components=None))
    unknown = text(result(reference={"images": None, "size": None, "resized": None}))
    assert "not recorded" in unknown
    assert "resized to that" in text(result(reference={"resized": True}))
    assert "500 images, not equally many of each class" in text(result(balanced=False))


def test_results_kept_in_a_run_are_found_and_others_left_out(tmp_path: Path) -> None:
    name = "evaluation-lite2-00000000.json"
    (tmp_path / name).write_text(json.dumps(result()))
    (tmp_path / "evaluation-a.json").write_text("{")
    (tmp_path / "evaluation-b.json").write_text('{"metrics": 3}')
    (tmp_path / "evaluation.json").write_text("{}")
    old = "evaluation-lite2-00000001.json"
    (tmp_path / old).write_text(json.dumps(earlier(result())))
    assert kept_texts(tmp_path) == [text(result() | {"path": path}) for path in (name, old)]
    assert set(METRICS) >= {"fd", "fd_full", "kd", "precision", "recall", "is"}


def test_a_runs_table_of_earlier_versions_is_read(tmp_path: Path) -> None:
    path = tmp_path / "evaluation.json"
    fd, kd = {"real_floor": 1.5, "one_step": 8.0}, {"real_floor": 0.25, "one_step": 2.0}
    found = {"fd": fd, "kd": kd, "protocol": made() | {"images_seen": 64}, "seconds": 3.0}
    for titles in ({}, {"titles": ["real images", "one step"]}):
        path.write_text(json.dumps(found | titles))
        read = read_result(path)
        assert (values_of(read, "fd"), values_of(read, "kd")) == (fd, kd)
        assert (read["model"]["images_seen"], read["made"]["seconds"]) == (64, 3.0)
        assert read["protocol"] == made()
        titles_read = [row["title"] for row in read["rows"].values()]
        assert titles_read == titles.get("titles", ["real_floor", "one_step"])
        assert "8.000    2.00000" in text(read)
    for wrong in ({"fd": 3}, {"seconds": "long"}, {"protocol": []}, {"titles": ["one"]}):
        path.write_text(json.dumps(found | wrong))
        with pytest.raises(ValueError, match="is not the result of an evaluation"):
            read_result(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"rows": []},
        {"rows": {}},
        {"rows": {"model": 3}},
        {"model": {"images_seen": "many"}},
        {"model": {"images_seen": -1}},
        {"model": {"seeds": [1]}},
        {"made": {"seconds": float("inf")}},
        {"made": {"seconds": "1"}},
        {"made": 3},
        {"protocol": {"code": "0"}},
        *(
            {"rows": {"model": {"title": "x", "metrics": {"fd": estimate}}}}
            for estimate in (
                3,
                {"value": None},
                {"value": "3"},
                {"value": 10**400},
                {"value": True},
                {"value": 1.0, "low": 1.0},
                {"value": 1.0, "low": "1", "high": "2"},
                {"value": 1.0, "why": [1]},
                {"value": 1.0, "unknown": 1},
            )
        ),
        {"rows": {"model": {"title": ["x"], "metrics": {}}}},
        {"rows": {"model": {"metrics": {}}}},
    ],
)
def test_a_result_of_other_kinds_is_refused_and_left_out(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    for name in ("evaluation.json", "evaluation-x.json"):
        (tmp_path / name).write_text(json.dumps(result() | wrong))
    with pytest.raises(
        ValueError, match=r"evaluation\.json is not the result of an evaluation: .+"
    ):
        read_result(tmp_path / "evaluation.json")
    assert kept_texts(tmp_path) == []
    assert card_quality(tmp_path, 6400) is None


def test_foreign_names_make_no_rows_headings_or_code_of_a_card(tmp_path: Path) -> None:
    evil = result(reference={"data": "x\n# Licence"})
    evil["rows"] = {"a | b\n# <c>": evil["rows"]["model"]}
    (tmp_path / "evaluation.json").write_text(json.dumps(evil))
    quality = card_quality(tmp_path, 6400)
    assert quality is not None
    lines = quality.text.splitlines()
    assert lines[2] == "| a \\| b # &lt;c> | 12.35 | 0.5 | 0.25 |"
    assert all(line.startswith("    ") for line in lines[4:])
    assert "    # Licence: 150 images" in "\n".join(lines)
