"""Settings: recipes by name, overrides, every mistake named at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.marks import marked_yaml
from fasttrain.settings.of_run import load_run_settings
from fasttrain.settings.recipes import (
    load_settings,
    recipe_folder,
    recipe_names,
    to_yaml,
    written,
)
from fasttrain.settings.trainings import TRAININGS
from fasttrain.system.errors import UserError
from tests.shared import task_of


def refusal(recipe: str, *overrides: str, schema: type = FinetuneSettings) -> str:
    with pytest.raises(UserError) as caught:
        load_settings(recipe, overrides, schema)
    return str(caught.value)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_valid_and_opens_with_its_launch_command(name: str) -> None:
    text = (recipe_folder() / f"{name}.yaml").read_text()
    head = text[: text.index("\n\n")] if "\n\n" in text else text
    task = task_of(name)
    assert f"fasttrain {task} {name}" in head
    settings = load_settings(name, [], TRAININGS[task].schema)
    assert settings.task == task


def test_overrides_are_parsed_as_yaml_and_reach_nested_settings() -> None:
    settings = load_settings(
        "digits-d2o-f",
        ["images=1e3", "r1.gamma=5e-4", "freeze=none", "network.channel_mult=[1, 2, 4]"],
        FinetuneSettings,
    )
    assert settings.images == 1000
    assert settings.r1.gamma == 5e-4
    assert settings.freeze == "none"
    assert settings.network.channel_mult == (1, 2, 4)


def test_attention_where_the_network_has_no_maps(tmp_path: Path) -> None:
    said = refusal("digits-d2o-f", "network.attn_resolutions=[16]")
    assert said == "network.attn_resolutions: the network has no maps of 16x16; it has [8, 4]"
    own = tmp_path / "own.yaml"
    own.write_text("extends: digits-d2o-f\nnetwork: {channel_mult: [1]}\n")
    assert "no maps of 4x4" in refusal(str(own))
    # A measurement of a smaller network than the recipe's says nothing about attention.
    small = load_settings("imagenet64-d2o-f", ["network.img_resolution=16"], FinetuneSettings)
    assert small.network.attn_resolutions == (32, 16, 8)


def test_what_is_the_users_own(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text("extends: digits-d2o-f\nnetwork: {dropout: 0.1}\nr1: {gamma: 0.1}\n")
    places = written(str(own), ["r1.gamma=0.2", "ema={half_life: 9}"]).places
    assert places == {
        "network.dropout": "own.yaml",
        "r1.gamma": "command line",
        "ema.half_life": "command line",
    }
    settings = load_settings(str(own), ["r1.gamma=0.2"], FinetuneSettings)
    text = marked_yaml(settings, places)
    marked = [line.strip() for line in text.splitlines() if "  # " in line]
    assert marked == [
        "dropout: 0.1  # own.yaml",
        "half_life: 2000  # command line",
        "gamma: 0.2  # command line",
    ]
    assert yaml.safe_load(text) == yaml.safe_load(to_yaml(settings))


def test_a_recipe_without_a_network_has_that_of_its_init(tmp_path: Path) -> None:
    full = yaml.safe_load((recipe_folder() / "digits-d2o-f.yaml").read_text())
    network = full.pop("network")
    full["init"] = str(tmp_path / "base")
    own = tmp_path / "own.yaml"
    own.write_text(yaml.safe_dump(full))
    assert "no model at" in refusal(str(own))
    (tmp_path / "base").mkdir()
    base = load_settings(
        "digits-edm", ["network.augment_dim=9", "network.dropout=0.1"], PretrainSettings
    )
    (tmp_path / "base" / "config.yaml").write_text(to_yaml(base))
    settings = load_settings(str(own), ["network.dropout=0.2"], FinetuneSettings)
    want = base.network.model_copy(update={"augment_dim": 0, "dropout": 0.2})
    assert settings.network == want
    assert settings.network.channel_mult == tuple(network["channel_mult"])
    # A run that has begun keeps its own, whatever became of that model.
    (tmp_path / "run" / "checkpoints" / "step-0000000064").mkdir(parents=True)
    (tmp_path / "run" / "config.yaml").write_text(to_yaml(settings))
    (tmp_path / "base" / "config.yaml").unlink()
    again = load_settings(str(own), [f"run={tmp_path / 'run'}"], FinetuneSettings)
    assert again.network == want


def test_extends_merges_deeply_and_refuses_a_circle(tmp_path: Path) -> None:
    base = load_settings("digits-d2o-f", [], FinetuneSettings)
    thin = load_settings("digits-d2o", [], FinetuneSettings)
    assert thin.freeze == "none"
    assert base.freeze == 1
    assert thin.discriminator == base.discriminator
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    first.write_text(f"extends: {second}\n")
    second.write_text(f"extends: {first}\n")
    assert "extends" in refusal(str(first))


def test_unknown_recipe_suggests_the_nearest() -> None:
    assert "did you mean digits-d2o-f?" in refusal("digits-d2of")


def test_unknown_keys_suggest_the_nearest_at_every_depth() -> None:
    message = refusal("digits-d2o-f", "imagse=3", "discriminator.norm_gruop=8", "r1.gama=1")
    assert "unknown key imagse: did you mean images?" in message
    assert "unknown key discriminator.norm_gruop: did you mean norm_group?" in message
    assert "unknown key r1.gama: did you mean gamma?" in message
    inside = refusal("digits-d2o-f", "discriminator.backbones=[{name: lite0, resolutoin: 64}]")
    assert "did you mean resolution?" in inside


def test_all_mistakes_are_reported_at_once_a_line_each() -> None:
    message = refusal("digits-d2o-f", "batch=many", "seed=-1", "freeze=7", "imagse=3")
    lines = message.splitlines()
    assert len([line for line in lines if "batch" in line and "'many'" in line]) == 1
    assert len([line for line in lines if "seed" in line and "-1" in line]) == 1
    assert any("freeze" in line for line in lines)
    assert any("imagse" in line for line in lines)
    assert all(line.startswith("digits-d2o-f: ") for line in lines)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["batch=60"], "norm_group 16 does not divide batch 60"),
        (["micro_batch=24"], "norm_group 16 does not divide micro_batch 24"),
        (["discriminator.norm_group=1"], "norm_group: 1 would normalise each image by itself"),
        (["data.streams=5"], "batch 64 is not a multiple of 5 data.streams"),
        (["discriminator.backbones=[{name: lite0}, {name: lite0}]"], "name each one once"),
        (["batch"], "write it as a.b=value"),
        (["batch.size=3"], "batch holds a single value"),
        (["data.path={"], "not valid YAML"),
    ],
)
def test_contradictions_and_malformed_overrides(overrides: list[str], expected: str) -> None:
    assert expected in refusal("digits-d2o-f", *overrides)


def test_a_recipe_of_another_command_is_refused() -> None:
    assert "`fasttrain pretrain`" in refusal("digits-edm")
    assert "`fasttrain finetune`" in refusal("digits-d2o-f", schema=PretrainSettings)


def test_broken_yaml_names_file_and_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.yaml"
    broken.write_text("task: finetune\nrun: [\n")
    assert str(broken) in refusal(str(broken))
    broken.write_text("- a list\n")
    assert "mapping" in refusal(str(broken))


def test_settings_survive_the_round_trip_through_a_run_directory(tmp_path: Path) -> None:
    for name, schema in (
        ("digits-edm", PretrainSettings),
        ("digits-d2o-f", FinetuneSettings),
        ("imagenet64-d2o-f", FinetuneSettings),
        ("imagenet64-edm", PretrainSettings),
    ):
        settings = load_settings(name, [f"run={tmp_path}"], schema)
        (tmp_path / "config.yaml").write_text(to_yaml(settings))
        assert load_run_settings(tmp_path) == settings
        assert yaml.safe_load(to_yaml(settings))["task"] == settings.task


def test_settings_are_frozen() -> None:
    settings = load_settings("digits-edm", [], PretrainSettings)
    with pytest.raises(ValueError, match="frozen"):
        settings.batch = 3  # type: ignore[misc]


def test_a_key_twice_is_refused_where_it_is(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: digits-d2o-f\nimages: 100\nr1:\n  gamma: 1\nimages: 200\n")
    assert "line 5" in refusal(str(path))
    assert "'images' is set twice, first in line 2" in refusal(str(path))
    path.write_text("extends: digits-d2o-f\nr1:\n  gamma: 1\n  gamma: 2\n")
    assert "'gamma' is set twice, first in line 3" in refusal(str(path))


def test_extends_looks_beside_the_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base.yaml").write_text("extends: digits-d2o-f\nimages: 640\n")
    (tmp_path / "digits-d2o.yaml").write_text("extends: digits-d2o-f\nimages: 320\n")
    child = tmp_path / "child.yaml"
    monkeypatch.chdir(tmp_path.parent)
    for base, images in (("base", 640), ("base.yaml", 640), ("digits-d2o", 320)):
        child.write_text(f"extends: {base}\nseed: 5\n")
        settings = load_settings(str(child), [], FinetuneSettings)
        assert (settings.images, settings.seed) == (images, 5)
    child.write_text("extends: nothere.yaml\n")
    assert refusal(str(child)) == f"no file nothere.yaml (looked in {tmp_path}, too)"


def test_a_recipe_may_have_the_name_of_the_one_that_it_extends(tmp_path: Path) -> None:
    copy = tmp_path / "digits-d2o-f.yaml"
    copy.write_text("extends: digits-d2o-f\nimages: 640\n")
    settings = load_settings(str(copy), [], FinetuneSettings)
    shipped = load_settings("digits-d2o-f", ["images=640"], FinetuneSettings)
    assert settings == shipped
    copy.write_text(f"extends: {copy}\n")
    assert "which extends it in turn" in refusal(str(copy))


def test_a_file_that_is_not_there_is_named_alone() -> None:
    assert refusal("nothere.yaml") == "no file nothere.yaml"
    assert refusal("folder/recipe") == "no file folder/recipe"


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("lr", "generator.rate or discriminator.optimizer.rate"),
        ("learning_rate", "generator.rate or discriminator.optimizer.rate"),
        ("epochs", "images"),
        ("num_workers", "data.workers"),
        ("discriminator.optimizer.lr", "generator.rate or discriminator.optimizer.rate"),
        ("gamma", "r1.gamma"),
        ("half_life", "ema.half_life"),
        ("mixed_precision", "precision or discriminator.precision"),
    ],
)
def test_names_of_other_trainers_lead_to_ours(key: str, name: str) -> None:
    assert f"unknown key {key}: did you mean {name}?" in refusal("digits-d2o-f", f"{key}=1")


def test_a_setting_written_as_an_option_is_shown_as_it_is_written() -> None:
    line = "no option --images: a setting is written as images=100"
    assert refusal("digits-d2o-f", "--images=100") == line
    assert refusal("digits-d2o-f", "--images", "100") == line.replace("100", "VALUE")
    assert refusal("--images=100", "digits-d2o-f") == line
    line = "--dry-run belongs to the command itself: `fasttrain finetune RECIPE --dry-run`"
    assert refusal("digits-d2o-f", "--dry-run") == line  # of `launch -- finetune RECIPE --dry-run`
    line = "run: ~nobody-has-this/x: no user nobody-has-this: write the path in full"
    assert line in refusal("digits-d2o-f", "run=~nobody-has-this/x")
    assert refusal("digits-d2o-f", "--dry-rn") == "no option --dry-rn: did you mean --dry-run?"


def test_home_and_variables_are_expanded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("SET", "flowers")
    monkeypatch.delenv("NOWHERE", raising=False)
    overrides = ["run=~/runs/a", "data.path=$HOME/${SET}"]
    settings = load_settings("digits-d2o-f", overrides, FinetuneSettings)
    assert settings.run == tmp_path / "runs" / "a"
    assert settings.data.path == f"{tmp_path}/flowers"
    assert "the variable $NOWHERE is not set" in refusal("digits-d2o-f", "run=$NOWHERE/a")


def test_a_saved_run_expands_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its settings may be anyone's, and a URL with a secret in it would be sent."""
    monkeypatch.setenv("SECRET", "word")
    settings = load_settings("digits-d2o-f", [], FinetuneSettings)
    text = to_yaml(settings).replace(str(settings.data.path), "https://host/$SECRET")
    (tmp_path / "config.yaml").write_text(text)
    assert load_run_settings(tmp_path).data.path == "https://host/$SECRET"


def test_mistakes_that_a_new_user_makes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal("digits-edm.yaml").endswith("the recipe that comes with fasttrain is digits-edm")
    assert refusal(str(tmp_path)).endswith("is a folder: name a recipe")
    assert refusal("digits-d2o-f", "network=5").endswith("settings, network.KEY=VALUE, not 5")
    assert refusal("digits-d2o-f", "run=").endswith("run: input is not a valid path, not None")
    mine = tmp_path / "mine.yaml"  # its paths begin where the command runs
    mine.write_text("task: finetune\ninit: runs/nowhere\n")
    assert f"no model at {tmp_path}/runs/nowhere" in refusal(str(mine))
    settings = load_settings("digits-d2o-f", ["run=L\u00e4ufe"], FinetuneSettings)
    assert "L\u00e4ufe" in to_yaml(settings)


def test_generators_of_sid_are_what_import_makes_of_their_files() -> None:
    """`import --one-step --sigma 2.5` of an EDM pickle: the wrapper of a diffusion model."""
    names = [
        path.stem
        for path in sorted((Path(__file__).parents[2] / "configs").glob("*-sid-d2o-f.yaml"))
    ]
    assert len(names) == 5
    for name in names:
        settings = load_settings(name, [], FinetuneSettings)
        assert (settings.network.prediction.eps, settings.sigma) == (0.0, 2.5), name
