"""The settings that a run directory holds: of any version, and maybe anyone's.

load_run_settings(Path("runs/digits-edm"))
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from fasttrain.settings.former import Gone, renewed
from fasttrain.settings.mistakes import causes, explain
from fasttrain.settings.run import RunSettings
from fasttrain.settings.trainings import TRAININGS
from fasttrain.settings.yaml_text import read_yaml
from fasttrain.system.errors import UserError

__all__ = ["former_settings", "load_run_settings"]

MAX_TEXT = 400
"""Limit of an error message about a run's settings, in characters; they may come from anyone."""


def load_run_settings(run: Path) -> RunSettings:
    """The resolved settings of a run directory. Settings that there were once are replaced, or left
    out with a warning. Raises UserError in one line, which names all mistakes as far as it goes."""
    values, gone = _values(run)
    path = run / "config.yaml"
    for each in gone:
        if each.felt:
            warnings.warn(_bounded(f"{path}: {each}"), stacklevel=2)
    schema = TRAININGS.get(str(values.get("task")), TRAININGS["pretrain"]).schema
    try:
        return schema.model_validate(values)
    except ValidationError as error:
        items = causes(error.errors())
    names = [".".join(map(str, i["loc"])) for i in items if i["type"] == "extra_forbidden"]
    lines = [explain(item, schema) for item in items if item["type"] != "extra_forbidden"]
    if names:
        lines.append(
            f"this version of fasttrain does not know {', '.join(names)}: update fasttrain, if a "
            f"newer one wrote the run, or delete what was added by hand"
        )
    raise UserError(f"{path}: {_bounded('; '.join(lines))}")


def former_settings(run: Path) -> list[Gone]:
    """Settings of a run directory's `config.yaml` that there are no more. Raises UserError."""
    return _values(run)[1]


def _values(run: Path) -> tuple[dict[str, Any], list[Gone]]:
    path = run / "config.yaml"
    if not (path.exists() or path.is_symlink()):
        raise UserError(f"{run} is not a run directory: it has no config.yaml")
    values: Mapping[str, Any] = read_yaml(path)
    return renewed(values)


def _bounded(text: str) -> str:
    line = "".join(c if c.isprintable() else " " for c in text)
    return line if len(line) <= MAX_TEXT else f"{line[: MAX_TEXT - 150]} ... {line[-140:]}"
