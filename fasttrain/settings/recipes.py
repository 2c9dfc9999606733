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
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from fasttrain.settings.mistakes import causes, did_you_mean, explain
from fasttrain.settings.run import RunSettings
from fasttrain.settings.trainings import TRAININGS
from fasttrain.system.errors import UserError
from fasttrain.system.files import read_bytes

__all__ = ["load_run_settings", "load_settings", "recipe_folder", "recipe_names", "to_yaml"]


MAX_BYTES, MAX_VALUES, MAX_DEPTH = 1 << 17, 10_000, 50
"""Size limit of a recipe and of a run's settings."""

MAX_LINE = 300
"""Limit of an error message about a run's settings, in characters; they may come from anyone."""

AnySettings = TypeVar("AnySettings", bound=RunSettings)


def recipe_folder() -> Path:
    """`configs/` of the checkout, or its copy inside the installed package."""
    inside = Path(str(resources.files("fasttrain"))) / "configs"
    return inside if inside.is_dir() else inside.parent.parent / "configs"


def recipe_names() -> list[str]:
    return sorted(path.stem for path in recipe_folder().glob("*.yaml"))


def load_settings(recipe: str, overrides: Iterable[str], schema: type[AnySettings]) -> AnySettings:
    """Settings of a recipe by name or path, with `a.b=c` overrides on top.

    Raises UserError, a line for each mistake: unknown recipe or key (with the nearest known one),
    wrong type, settings that contradict each other, a recipe of another command.
    """
    _refuse_option(recipe)
    values = _read_recipe(_find_recipe(recipe, None), seen=())
    for override in overrides:
        _apply_override(values, override)
    return _validate(_expand(values, recipe), schema, recipe)


def load_run_settings(run: Path) -> RunSettings:
    """The resolved settings of a run directory."""
    path = run / "config.yaml"
    if not (path.exists() or path.is_symlink()):
        raise UserError(f"{run} is not a run directory: it has no config.yaml")
    values = _read_yaml(path)
    try:
        training = TRAININGS.get(str(values.get("task")), TRAININGS["pretrain"])
        return _validate(values, training.schema, str(path))
    except UserError as error:  # the settings may come from anyone
        lines = str(error).splitlines()
        more = f" (and {len(lines) - 1} more)" if len(lines) > 1 else ""
        line = "".join(c if c.isprintable() else " " for c in lines[0])
        raise UserError(line[: len(str(path)) + MAX_LINE] + more) from None


def to_yaml(settings: BaseModel) -> str:
    """Resolved settings as YAML; reading it back gives the same settings."""
    return yaml.safe_dump(settings.model_dump(mode="json"), sort_keys=False)


def _read_recipe(path: Path, seen: Sequence[Path]) -> dict[str, Any]:
    values = _read_yaml(path)
    base = values.pop("extends", None)
    if base is None:
        return values
    below = _find_recipe(str(base), path.parent, path.resolve())
    seen = (*seen, path.resolve())
    if below.resolve() in seen:
        raise UserError(f"{path}: extends {base!r}, which extends it in turn")
    return _merge(_read_recipe(below, seen), values)


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
        where = f" (looked in {beside}, too)" if beside is not None else ""
        raise UserError(f"no file {recipe}{where}")
    known = recipe_names()
    families = {name.removesuffix("-edm") for name in known if name.endswith("-edm")}
    raise UserError(
        f"no recipe {recipe!r}{did_you_mean(recipe, known)}; they are named after the data, "
        f"{', '.join(sorted(families))}, and end in -edm, -d2o-f or -d2o; or give the path of a "
        f"YAML file"
    )


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers (PyYAML reads `5e-4` as text); dates stay plain text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def _parse_yaml(text: str) -> Any:
    """The value of a YAML text, which may be hostile. Raises yaml.YAMLError."""
    loader = _Loader(text)
    try:
        node = loader.get_single_node()
        if node is None:
            return None
        size, depth = _extent(node, {})
        if size > MAX_VALUES:
            raise yaml.MarkedYAMLError(problem=f"it expands to more than {MAX_VALUES:,} values")
        if depth > MAX_DEPTH:
            raise RecursionError
        _refuse_duplicates(node)
        return loader.construct_document(node)
    except RecursionError:
        raise yaml.MarkedYAMLError(problem="it is nested too deep") from None
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError):
        raise yaml.MarkedYAMLError(problem="it has a value that cannot be read") from None
    finally:
        loader.dispose()


def _refuse_duplicates(node: yaml.Node) -> None:
    """YAML forbids a key twice in a mapping, of which PyYAML takes the last without a word."""
    lines: dict[str, int] = {}
    for item in node.value if isinstance(node, yaml.CollectionNode) else ():
        for part in item if isinstance(item, tuple) else (item,):
            _refuse_duplicates(part)
        key = item[0] if isinstance(item, tuple) else None
        if isinstance(key, yaml.ScalarNode) and key.value != "<<":
            line = key.start_mark.line + 1
            if key.value in lines:
                first = f"{key.value!r} is set twice, first in line {lines[key.value]}"
                raise yaml.MarkedYAMLError(problem=first, problem_mark=key.start_mark)
            lines[key.value] = line


def _extent(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """Number of values in a node and their depth, counting each alias as a copy: a few lines of
    aliases of aliases expand to billions, and an alias inside itself never ends."""
    if id(node) not in known:
        known[id(node)] = MAX_VALUES + 1, 0  # until it is counted: an alias to it from inside
        inner = node.value if isinstance(node, yaml.CollectionNode) else ()
        parts = (part for item in inner for part in (item if isinstance(item, tuple) else (item,)))
        extents = [(1, 0), *(_extent(part, known) for part in parts)]
        size = min(sum(size for size, _ in extents), MAX_VALUES + 1)
        known[id(node)] = size, 1 + max(depth for _, depth in extents)
    return known[id(node)]


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = _parse_yaml(read_bytes(path, MAX_BYTES).decode())
    except UnicodeDecodeError:
        raise UserError(f"{path} is not a text file; a recipe is YAML") from None
    except yaml.YAMLError as error:
        place = getattr(error, "problem_mark", None)
        line = f" line {place.line + 1}" if place else ""
        problem = getattr(error, "problem", None) or "cannot be read"
        raise UserError(f"{path}:{line} is not valid YAML: {problem}") from None
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a recipe: a recipe is a mapping of settings")
    return values


def _merge(base: Mapping[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        both = isinstance(value, Mapping) and isinstance(merged.get(key), Mapping)
        merged[key] = _merge(merged[key], value) if both else value
    return merged


def _apply_override(values: dict[str, Any], override: str) -> None:
    _refuse_option(override)
    name, equals, text = override.partition("=")
    if not equals or not name:
        raise UserError(f"{override!r} is not an override: write it as a.b=value")
    *parents, last = name.split(".")
    node: Any = values
    for parent in parents:
        node = node.setdefault(parent, {}) if isinstance(node, dict) else None
    if not isinstance(node, dict):
        raise UserError(f"{override!r}: {'.'.join(parents)} holds a single value, not settings")
    try:
        node[last] = _parse_yaml(text)
    except yaml.YAMLError:
        raise UserError(f"{override!r}: the value is not valid YAML") from None


def _refuse_option(word: str) -> None:
    """Raises UserError for a word of the command line that looks like an option and is none."""
    name, _, text = word.partition("=")
    if not name.startswith("-"):
        return
    if close := did_you_mean(name, ["--dry-run", "--help"]):
        raise UserError(f"no option {name}{close}")
    plain = name.lstrip("-").replace("-", "_")
    raise UserError(f"no option {name}: a setting is written as {plain}={text or 'VALUE'}")


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
            f"{source} is a recipe for `fasttrain {values['task']}`, not for `fasttrain {task}`"
        )
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        lines = [explain(item, schema) for item in causes(error.errors())]
        raise UserError("\n".join(f"{source}: {line}" for line in lines)) from None
