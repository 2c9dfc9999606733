"""Runs of earlier versions, whose settings were renamed or dropped since, are read and resumed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import yaml

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.directory import EARLIER, check_directory, open_directory
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.described import find
from fasttrain.settings.former import FORMER
from fasttrain.settings.of_run import load_run_settings
from fasttrain.settings.recipes import load_settings, to_yaml
from fasttrain.system.errors import UserError

Change = dict[tuple[str, ...], Any]
REMOVED = object()
DROPPED: Change = {
    ("generator", "clip"): None,
    ("discriminator", "optimizer", "clip"): None,
    ("engine", "discriminator_zero_stage"): None,
}


@pytest.fixture
def settings(tmp_path: Path) -> FinetuneSettings:
    words = [f"run={tmp_path / 'run'}", "generator.decay={kind: linear, until: 500}"]
    return load_settings("digits-d2o-f", words, FinetuneSettings)


def saved(settings: FinetuneSettings, change: Change) -> Path:
    """A run with a checkpoint, whose config.yaml has these settings of an earlier version."""
    values = yaml.safe_load(to_yaml(settings))
    for (*parents, last), value in change.items():
        place = values
        for parent in parents:
            place = place[parent]
        if value is REMOVED:
            del place[last]
        else:
            place[last] = value
    settings.run.mkdir()
    checkpoint.save(settings.run / "checkpoints", 64, {}, {"images": 64})
    (settings.run / "config.yaml").write_text(yaml.safe_dump(values))
    return settings.run


def test_settings_that_are_gone_or_renamed_are_read(settings: FinetuneSettings) -> None:
    values = yaml.safe_load(to_yaml(settings))
    renamed: Change = {
        ("r1", "on"): "features",
        ("r1", "inputs"): REMOVED,
        ("generator", "decay", "images"): 500,
        ("generator", "decay", "until"): REMOVED,
    }
    run = saved(settings, DROPPED | renamed)
    values["r1"] |= {"inputs": "features"}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is lost, and nothing is said
        found = load_run_settings(run)
    assert found.model_dump() == FinetuneSettings.model_validate(values).model_dump()
    assert found.generator.decay.until == 500  # type: ignore[attr-defined]


def test_what_was_set_and_is_gone_is_said_and_not_resumed(settings: FinetuneSettings) -> None:
    run = saved(settings, DROPPED | {("generator", "clip"): 1.5})
    with pytest.warns(
        UserWarning, match=r"generator\.clip=1\.5 is not a setting any more: gradients"
    ):
        assert load_run_settings(run) == settings
    with pytest.raises(UserError, match=r"trained with generator\.clip=1\.5.*from=.*@latest"):
        check_directory(settings)


def test_a_resumed_run_keeps_its_earlier_settings(settings: FinetuneSettings) -> None:
    run = saved(settings, DROPPED | {("engine", "discriminator_zero_stage"): 1})
    before = (run / "config.yaml").read_text()
    with pytest.warns(UserWarning, match="is of an earlier version: renamed or gone since are"):
        open_directory(settings).release()
    assert (run / EARLIER).read_text() == before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_directory(settings).release()
    assert (run / EARLIER).read_text() == before
    assert load_run_settings(run) == settings


def test_unknown_settings_of_a_run_are_all_named(settings: FinetuneSettings) -> None:
    run = saved(settings, {("engine", "new"): 1, ("newer",): 2, ("images",): "many"})
    with pytest.raises(UserError) as caught:
        load_run_settings(run)
    text = str(caught.value)
    assert all(word in text for word in ("engine.new, newer", "update fasttrain", "images: "))
    assert "\n" not in text


def test_a_recipe_may_not_have_them(tmp_path: Path) -> None:
    for name, value in (("generator.clip", 1), ("engine.discriminator_zero_stage", 1)):
        with pytest.raises(UserError, match=rf"{name} is not a setting any more: "):
            load_settings("digits-d2o-f", [f"{name}={value}"], FinetuneSettings)
        with pytest.raises(UserError, match=rf"{name} is not a setting any more: "):
            find(name)
    assert all(each.why for each in FORMER.values())
