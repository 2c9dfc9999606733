"""`fasttrain explain`, `schema` and `runs`."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import yaml

from fasttrain.checkpoints.lock import Lock
from fasttrain.settings import PretrainSettings
from fasttrain.settings.described import json_schema, settings
from fasttrain.settings.recipes import (
    load_settings,
    recipe_folder,
    recipe_names,
    to_yaml,
    written,
)
from fasttrain.settings.trainings import TRAININGS
from fasttrain.settings.yaml_text import read_yaml
from tests.runs.calling import call


def test_explain_a_setting_by_any_of_its_names(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "explain", "r1.gamma")
    assert status == 0
    lines = out.splitlines()
    assert lines[:3] == ["r1.gamma", "  Strength of the exact penalty; 0: none.", "  default: 0.0"]
    assert any(line.startswith("  0.001 in digits-d2o") for line in lines)
    rows = json.loads(call(capsys, "explain", "lr", "--json")[1])
    names = {row["setting"] for row in rows}
    assert names >= {"optimizer.rate", "generator.rate", "discriminator.optimizer.rate"}
    assert {row["setting"] for row in json.loads(call(capsys, "explain", "ema", "--json")[1])} == {
        "ema.half_life",
        "ema.fraction",
    }
    status, _, error = call(capsys, "explain", "r1.gama")
    assert (status, "did you mean r1.gamma?" in error) == (2, True)


def test_the_schema_knows_every_setting_and_every_recipe_fits(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    meanings: dict[str, set[str]] = defaultdict(set)  # a path may be of several trainings
    for setting in settings():
        for path in setting.paths:
            meanings[path].add(setting.meaning)
    schemas = {task: json_schema(row.schema) for task, row in TRAININGS.items()}
    described = set()
    for whole in schemas.values():
        for path in meanings:
            node = at(whole, whole, path.split("."))
            if node is not None and "description" in node:
                described.add(path)
    gamma = at(schemas["finetune"], schemas["finetune"], ["r1", "gamma"])
    assert gamma is not None
    assert gamma["description"] in meanings["r1.gamma"]
    assert {path for path, texts in meanings.items() if texts != {""}} <= described
    for name in recipe_names():
        file = recipe_folder() / f"{name}.yaml"
        values = yaml.safe_load(file.read_text())
        whole = schemas.get(values.get("task"), schemas["finetune"])
        for path in leaves(values, ()) if "task" in values else ():
            assert at(whole, whole, list(path)) is not None, (name, path)
        task = written(name, []).values["task"]  # its own, or that of the recipe it extends
        assert f"# yaml-language-server: $schema=schema/{task}.json\n" in file.read_text()
        assert (
            json.loads((recipe_folder() / "schema" / f"{task}.json").read_text()) == (schemas[task])
        ), f"run: fasttrain schema {task} --out configs/schema/{task}.json"
    assert call(capsys, "schema", "finetune", "--out", tmp_path / "schema.json")[0] == 0
    assert json.loads((tmp_path / "schema.json").read_text()) == schemas["finetune"]
    assert call(capsys, "schema", "train")[0] == 2


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, ""),
        ({"batch": "many"}, "'many' is not of type 'integer'"),
        ({"r1": {"gama": 0.1}}, "'gama' was unexpected"),
        ({"loss": "hing"}, "'hing' is not one of"),
    ],
)
def test_a_validator_takes_the_recipes_and_finds_mistakes(
    change: dict[str, Any], said: str
) -> None:
    """As an editor does, with the schema that the recipe's first lines name."""
    jsonschema = pytest.importorskip("jsonschema")
    schemas = {
        task: json.loads((recipe_folder() / "schema" / f"{task}.json").read_text())
        for task in TRAININGS
    }
    for name in recipe_names() if not change else ("digits-d2o-f",):
        validator = jsonschema.Draft202012Validator(schemas[written(name, []).values["task"]])
        values = read_yaml(recipe_folder() / f"{name}.yaml") | change
        messages = [error.message for error in validator.iter_errors(values)]
        assert (said in " ".join(messages)) if said else messages == [], (name, messages)


def at(whole: dict[str, Any], node: dict[str, Any], path: list[str]) -> dict[str, Any] | None:
    """The part of a schema that a path leads to, as a validator resolves it."""
    options = node.get("anyOf", []) + node.get("allOf", []) + [node]
    for option in options:
        target = option
        if "items" in target and path:
            target = target["items"]
        if "$ref" in target:
            target = whole["$defs"][target["$ref"].rpartition("/")[2]]
        if not path:
            return node
        inner = target.get("properties", {}).get(path[0])
        if inner is not None:
            return at(whole, inner, path[1:])
        if target.get("additionalProperties"):  # a network's own options
            return target
    return None


def leaves(values: Any, prefix: tuple[str, ...]) -> list[tuple[str, ...]]:
    if isinstance(values, dict):
        return [p for key, inner in values.items() for p in leaves(inner, (*prefix, key))]
    return [prefix]


def test_runs_are_listed_with_their_state(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    for name, images in (("a", 64000), ("group/b", 640), ("c", 0)):
        run = tmp_path / name
        (run / "checkpoints").mkdir(parents=True)
        (run / "config.yaml").write_text(to_yaml(load_settings("digits-edm", [], PretrainSettings)))
        if images:
            (run / "checkpoints" / f"step-{images:010d}").mkdir()
            line = {"images": images, "fd": 40.5, "seconds": 3.0}
            (run / "stats.jsonl").write_text(json.dumps(line) + "\n")
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "config.yaml").write_text("no: run")
    lock = Lock(tmp_path / "c")
    lock.sign()
    try:
        rows = json.loads(call(capsys, "runs", tmp_path, "--json")[1])
    finally:
        lock.release()
    states = {row["name"]: (row["state"], row["images"], row["value"]) for row in rows}
    assert states == {
        "a": ("finished", 64000, 40.5),
        "group/b": ("stopped", 640, 40.5),
        "c": ("training", 0, None),
        "d": ("damaged", 0, None),
    }
    assert "process" in next(row["process"] for row in rows if row["name"] == "c")
    status, out, _ = call(capsys, "runs", tmp_path)
    assert status == 0
    line = next(line for line in out.splitlines() if line.startswith("group/b"))
    assert " ".join(line.split()).startswith("group/b pretrain stopped 640 of 64,000 fd 40.5")
    assert next(line for line in out.splitlines() if line.startswith("c ")).split()[2] == "new"
    assert call(capsys, "runs", tmp_path / "nowhere")[0] == 2


def test_models_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capsys, "models", "--json")
    assert status == 0
    rows = {row["name"]: row for row in json.loads(out)}
    assert rows["fashion-mnist"]["licence"] == "MIT"
    assert rows["fashion-mnist"]["numbers"]["evaluations"] == 1


def test_names_of_models_are_whole_on_a_narrow_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert "fashion-mnist-edm" in call(capsys, "models")[1].split()
