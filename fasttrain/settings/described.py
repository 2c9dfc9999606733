"""What every setting is: its names, default and docstring, read from the schema.

setting = find("r1.gamma")[0]
setting.meaning, setting.default, setting.paths
json.dumps(json_schema(FinetuneSettings))       # for editors
"""

from __future__ import annotations

import ast
import inspect
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any, get_args

import yaml

from fasttrain.settings.base import Settings
from fasttrain.settings.former import former
from fasttrain.settings.mistakes import OTHER_NAMES, did_you_mean
from fasttrain.settings.run import RunSettings
from fasttrain.settings.trainings import TRAININGS
from fasttrain.system.errors import UserError

__all__ = ["Setting", "find", "json_schema", "settings"]


@dataclass(frozen=True)
class Setting:
    """A field of one class of the schema; `paths`: all places that the class has in a recipe."""

    owner: type[Settings]
    name: str
    paths: tuple[str, ...]

    @property
    def shown(self) -> str:
        """Its name in a recipe."""
        return self.owner.model_fields[self.name].alias or self.name

    @property
    def meaning(self) -> str:
        """Its docstring, in one line."""
        return " ".join(docstrings(self.owner).get(self.name, "").split())

    @property
    def default(self) -> str:
        """As YAML; empty for one that a recipe must set."""
        field = self.owner.model_fields[self.name]
        if field.is_required():
            return ""
        value = field.get_default(call_default_factory=True)
        if isinstance(value, tuple):
            value = [v.model_dump(exclude_unset=True) if isinstance(v, Settings) else v
                     for v in value]  # fmt: skip
        return yaml.safe_dump(value, default_flow_style=True, width=1000).split("\n")[0]


def settings() -> list[Setting]:
    """All leaves of the schema, those of a class that stands in several places once."""
    paths: dict[tuple[type[Settings], str], dict[str, None]] = defaultdict(dict)
    for schema in (row.schema for row in TRAININGS.values()):
        for owner, name, path in _leaves(schema, ""):
            paths[owner, name].setdefault(path)
    return [Setting(owner, name, tuple(at)) for (owner, name), at in paths.items()]


def _leaves(schema: type[Settings], prefix: str) -> Iterator[tuple[type[Settings], str, str]]:
    for name, field in schema.model_fields.items():
        inner = schema_in(field.annotation)
        if inner:
            yield from _leaves(inner, f"{prefix}{name}.")
        else:
            owner = next(c for c in reversed(schema.__mro__) if name in _own_fields(c))
            yield owner, name, prefix + (field.alias or name)


def _own_fields(schema: type) -> Mapping[str, Any]:
    return inspect.get_annotations(schema) if issubclass(schema, Settings) else {}


def schema_in(annotation: Any) -> type[Settings] | None:
    """The settings that a field holds, itself or as an item."""
    if isinstance(annotation, type) and issubclass(annotation, Settings):
        return annotation
    return next(filter(None, map(schema_in, get_args(annotation))), None)


@cache
def docstrings(schema: type[Settings]) -> dict[str, str]:
    """Field -> the text below it in the class."""
    body = ast.parse(inspect.getsource(schema)).body[0].body  # type: ignore[attr-defined]
    found = {}
    for field, after in pairwise(body):
        text = after.value if isinstance(after, ast.Expr) else None
        if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Constant):
            found[ast.unparse(field.target)] = str(text.value)
    return found


def find(name: str) -> list[Setting]:
    """The settings of a name: its dotted path, its last part, or what other trainers call it.

    Raises UserError, with the nearest name, when there is none.
    """
    known = settings()
    wanted = OTHER_NAMES.get(name.lower().replace("-", "_"), name)
    exact = [setting for setting in known if wanted in setting.paths]
    last = [s for s in known if any(p.rpartition(".")[2] == wanted for p in s.paths)]
    inside = [s for s in known if any(p.startswith(f"{wanted}.") for p in s.paths)]
    if found := exact or inside or last:
        return found
    paths = [path for setting in known for path in setting.paths]
    hint = did_you_mean(name, paths) or did_you_mean(name, [p.rpartition(".")[2] for p in paths])
    if once := former(name):
        raise UserError(f"{name} is not a setting any more: {once.why}")
    raise UserError(f"no setting {name}{hint or ': docs/settings.md has them all'}")


def json_schema(schema: type[RunSettings]) -> dict[str, Any]:
    """A JSON schema of a recipe, with the docstrings as descriptions. Nothing is required in it:
    what a recipe leaves out may come from the one that it extends."""
    whole = schema.model_json_schema(by_alias=True)
    classes: dict[str, tuple[dict[str, Any], type[Settings]]] = {schema.__name__: (whole, schema)}
    kinds = {setting.owner.__name__: setting.owner for setting in settings()}
    for name, part in whole.get("$defs", {}).items():
        if name in kinds:
            classes[name] = (part, kinds[name])
    for part, owner in classes.values():
        part.pop("required", None)
        texts = {k: v for c in reversed(owner.__mro__) if issubclass(c, Settings)
                 for k, v in docstrings(c).items()}  # fmt: skip
        for name, field in owner.model_fields.items():
            if name in texts:
                said = " ".join(texts[name].split())
                part["properties"][field.alias or name]["description"] = said
    whole["properties"]["extends"] = {
        "type": "string",
        "description": "Another recipe, by name or path, whose settings this one changes.",
    }
    return whole
