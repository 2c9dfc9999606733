"""Two numbers that may not be compared have different codes; two that may have the same."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from fasttrain.evaluation.protocol import METRICS, kept_texts, protocol_of, text

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
    return {
        "metrics": {
            "fd": {"value": 12.3456, "low": 11.5, "high": 13.25},
            "precision": {"value": 0.5, "low": None, "high": None},
            "recall": {"value": 0.25, "low": None, "high": None, "why": "not worked out"},
        },
        "protocol": made(**changes),
        "model": {
            "name": "run",
            "weights": "fedcba987654",
            "images_seen": 6400,
            "sampler": "18 Heun steps (35 evaluations)",
            "seeds": "0-499",
            "classes": None,
        },
        "path": "run/evaluation.json",
    }


def test_the_text_holds_the_numbers_and_all_of_the_protocol() -> None:
    said = text(result())
    for part in (
        "run after 6,400 images (weights fedcba987654): 18 Heun steps (35 evaluations)",
        "seeds 0-499",
        "12.346   11.5 to 13.25",
        "0.5   none: too few images",
        "0.25   none: not worked out",
        f"protocol {made()['code']} (numbers with another code do not compare",
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
    assert "500 images, not of all classes alike" in text(result(balanced=False))


def test_results_kept_in_a_run_are_found_and_others_left_out(tmp_path: Path) -> None:
    name = "evaluation-lite2-00000000.json"
    (tmp_path / name).write_text(json.dumps(result()))
    (tmp_path / "evaluation-a.json").write_text("{")
    (tmp_path / "evaluation-b.json").write_text('{"metrics": 3}')
    (tmp_path / "evaluation.json").write_text("{}")
    (found,) = kept_texts(tmp_path)
    assert found == text(result() | {"path": name})
    assert set(METRICS) >= {"fd", "fd_full", "kd", "precision", "recall", "is"}
