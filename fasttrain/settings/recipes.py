"""Recipes: YAML files, overrides and messages for their mistakes, with "did you mean".

A recipe is a YAML file in `configs/` (found by name in a checkout and in an installed wheel) or any
path. It may build on another with `extends: NAME`; dotted overrides come last:

    settings = load_settings("digits-d2o-f", ["images=3000", "r1.gamma=0.1"], FinetuneSettings)

`fasttrain.settings` defines the settings. All mistakes of one kind are reported together, a line
each, before anything else happens: first unknown settings, then wrong values, then settings that
contradict each other.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fasttrain.settings.base import absolute_or_name
from fasttrain.settings.mistakes import causes, did_you_mean, explain
from fasttrain.settings.network import NetworkSettings
from fasttrain.settings.of_run import load_run_settings
from fasttrain.settings.overrides import apply_override, refuse_option
from fasttrain.settings.registry import NETWORK_OF, SHELF, load
from fasttrain.settings.run import RunSettings
from fasttrain.settings.trainings import TRAININGS
from fasttrain.settings.yaml_text import read_yaml
from fasttrain.system.errors import UserError

__all__ = [
    "COMMAND_LINE",
    "Written",
    "load_settings",
    "recipe_folder",
    "recipe_names",
    "to_yaml",
    "values_in_recipes",
    "written",
]


COMMAND_LINE = "command line"
"""Place of an override."""

AnySettings = TypeVar("AnySettings", bound=RunSettings)


def recipe_folder() -> Path:
    """`configs/` of the checkout, or its copy inside the installed package."""
    inside = Path(str(resources.files("fasttrain"))) / "configs"
    return inside if inside.is_dir() else inside.parent.parent / "configs"


def recipe_names() -> list[str]:
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def load_settings(
    recipe: str, overrides: Iterable[str], schema: type[AnySettings], *, ahead: bool = False
) -> AnySettings:
    """Settings of a recipe by name or path, with `a.b=c` overrides on top. A fine-tuning recipe
    without a `network` has that of its `init`; ahead of that one's training, where these are only
    looked at, the recipe beside it says what it will be, with a warning.

    Raises UserError, a line for each mistake: unknown recipe or key (with the nearest known one),
    wrong type, settings that contradict each other, a recipe of another command.
    """
    words = written(recipe, overrides)
    folder = _find_recipe(recipe, None).parent if ahead else None
    values = _with_network(_expand(words.values, recipe), schema, folder)
    settings = _validate(values, schema, recipe)
    _check_attention(settings, words)
    return settings


@dataclass(frozen=True)
class Written:
    """What a recipe and the overrides say, before the schema's defaults.

    Attributes:
        places: dotted name of each value of the user's own -> `command line`, or the name of the
            file; values of the recipes that come with fasttrain are not in it.
    """

    values: dict[str, Any]
    places: dict[str, str]


def written(recipe: str, overrides: Iterable[str]) -> Written:
    """Raises UserError as `load_settings` does, but for what the schema knows."""
    refuse_option(recipe)
    words = Written({}, {})
    _read_recipe(_find_recipe(recipe, None), (), words)
    for override in overrides:
        before = _leaves(words.values)
        apply_override(words.values, override)
        name = override.partition("=")[0]
        for leaf in _leaves(words.values):
            if leaf == name or leaf.startswith(f"{name}.") or leaf not in before:
                words.places[leaf] = COMMAND_LINE
    return words


def values_in_recipes(path: str) -> dict[str, str]:
    """Recipe that comes with fasttrain -> its value of a setting, as YAML, where it sets one."""
    found = {}
    for name in recipe_names():
        value: Any = _published(name)
        for part in path.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        if value is not None:
            text = yaml.safe_dump(value, default_flow_style=True, width=10_000, sort_keys=False)
            found[name] = text.removesuffix("\n").removesuffix("\n...")
    return found


@cache
def _published(name: str) -> Mapping[str, Any]:
    return written(name, []).values


def to_yaml(settings: BaseModel) -> str:
    """Resolved settings as YAML; reading it back gives the same settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _read_recipe(path: Path, seen: Sequence[Path], words: Written) -> None:
    """Add a recipe's values to `words`, those of the recipe that it extends before its own."""
    values = read_yaml(path)
    base = values.pop("extends", None)
    if base is not None:
        below = _find_recipe(str(base), path.parent, path.resolve())
        seen = (*seen, path.resolve())
        if below.resolve() in seen:
            raise UserError(f"{path}: extends {base!r}, which extends it in turn")
        _read_recipe(below, seen, words)
    merged = _merge(words.values, values)
    words.values.clear()
    words.values.update(merged)
    published = path.resolve().parent == recipe_folder().resolve()
    for leaf in _leaves(values):
        if published:
            words.places.pop(leaf, None)
        else:
            words.places[leaf] = path.name


def _leaves(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Dotted names of all values that hold no others."""
    names = []
    for key, value in values.items():
        inner = isinstance(value, Mapping) and value
        names += _leaves(value, f"{prefix}{key}.") if inner else [f"{prefix}{key}"]
    return names


def _with_network(
    values: dict[str, Any], schema: type[RunSettings], folder: Path | None
) -> dict[str, Any]:
    """The values, with the network of the model that fine-tuning starts from where they have none;
    of a run that has begun, its own, whatever became of that model. folder: of a recipe for it."""
    network, init = values.get("network", {}), values.get("init")
    known = isinstance(network, Mapping) and "img_resolution" not in network
    if not known or "init" not in schema.model_fields or not isinstance(init, str):
        return values
    run = Path(str(values.get("run", "")))
    if any((run / "checkpoints").glob("step-*")):
        start = load_run_settings(run).network
    else:
        path = absolute_or_name(Path(init))
        start = (folder and _still_to_train(path, folder)) or load(NETWORK_OF)(path)
    own = start.model_dump(mode="json", exclude_defaults=True)
    own.pop("augment_dim", None)  # fine-tuning has no such labels
    return values | {"network": _merge(own, network)}


def _still_to_train(init: Path, folder: Path) -> NetworkSettings | None:
    """The network of a run that is not there yet, by the recipe of its name in a folder."""
    recipe = folder / f"{init.name}.yaml"
    if init.exists() or str(init) in SHELF or not recipe.is_file():
        return None
    values = _expand(written(str(recipe), []).values, str(recipe))
    task, run = str(values.get("task", "pretrain")), Path(str(values.get("run")))
    if task not in TRAININGS or "network" not in values or absolute_or_name(run) != init:
        return None
    network = _validate(values, TRAININGS[task].schema, str(recipe)).network
    warnings.warn(f"{init} does not exist yet: the network is that of {recipe}", stacklevel=2)
    return network


def _check_attention(settings: RunSettings, words: Written) -> None:
    """Raises UserError where the recipe names a resolution for attention that its network does not
    have. A measurement that shrinks a recipe's network on the command line is let through."""
    network, places = settings.network, words.places
    name = "network.attn_resolutions"
    shrunk = any(
        places.get(f"network.{size}") == COMMAND_LINE for size in ("img_resolution", "channel_mult")
    )
    if name not in _leaves(words.values) or (shrunk and places.get(name) != COMMAND_LINE):
        return
    levels = [network.img_resolution >> i for i in range(len(network.channel_mult))]
    if lost := [size for size in network.attn_resolutions if size not in levels]:
        raise UserError(f"{name}: the network has no maps of {lost[0]}x{lost[0]}; it has {levels}")


def _find_recipe(recipe: str, beside: Path | None, but: Path | None = None) -> Path:
    """The file of a recipe: a path, or a name of those that come with fasttrain. What `extends`
    names is looked up beside the recipe first, except for that recipe itself, `but`: a copy may
    have the name of the recipe that it extends."""
    near = [beside / recipe, beside / f"{recipe}.yaml"] if beside is not None else []
    others = [path for path in near if path.resolve() != but]
    for path in (*others, Path(recipe), recipe_folder() / f"{recipe}.yaml"):
        if path.is_file():
            return path
    if "/" in recipe or recipe.endswith((".yaml", ".yml")):
        if Path(recipe).is_dir():
            raise UserError(f"{recipe} is a folder: name a recipe")
        stem = Path(recipe).stem
        if stem in recipe_names():
            raise UserError(f"no file {recipe}: the recipe that comes with fasttrain is {stem}")
        where = f" (looked in {beside}, too)" if beside is not None else ""
        raise UserError(f"no file {recipe}{where}")
    known = recipe_names()
    families = {name.removesuffix("-edm") for name in known if name.endswith("-edm")}
    raise UserError(
        f"no recipe {recipe!r}{did_you_mean(recipe, known)}; they are named after the data, "
        f"{', '.join(sorted(families))}, and end in -edm, -d2o-f or -d2o, those of other "
        f"objectives like digits-cd (`fasttrain doctor` lists all); or give the path of a YAML file"
    )


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _expand(value: Any, recipe: str) -> Any:
    """Settings with `~` and `$NAME` in texts as a shell would have them. Only for what the user
    writes: a run's settings may be anyone's."""
    if isinstance(value, Mapping):
        return {key: _expand(inner, recipe) for key, inner in value.items()}
    if isinstance(value, list):
        return [_expand(inner, recipe) for inner in value]
    if not isinstance(value, str):
        return value
    text = os.path.expanduser(os.path.expandvars(value))
    if missing := re.search(r"\$([A-Za-z_]\w*|\{\w+\})", text):
        raise UserError(f"{recipe}: {value!r}: the variable {missing[0]} is not set")
    return text


def _validate(values: Mapping[str, Any], schema: type[AnySettings], source: str) -> AnySettings:
    task = schema.model_fields["task"].annotation.__args__[0]  # type: ignore[union-attr]
    if values.get("task", task) != task:
        raise UserError(
            f"{source} is for `fasttrain {values['task']}`: name a recipe for `fasttrain {task}`"
        )
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [explain(item, schema) for item in causes(error.errors())]
        raise UserError("\n".join(f"{source}: {line}" for line in lines)) from None
