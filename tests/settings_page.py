"""Every setting with its default, its meaning and its use: docs/settings.md.

    python -m tests.settings_page > docs/settings.md

A setting exists because something sets it: a recipe, a benchmark whose result is kept, or a test of
its effect (not of how a wrong value is refused). One that nothing sets has no place in the schema;
tests/settings/test_page.py fails on it.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from fasttrain.settings.described import Setting, settings
from fasttrain.settings.recipes import recipe_folder, recipe_names

ROOT = Path(__file__).parents[1]
REFUSALS = {"tests/runs/test_bad_input.py", "tests/settings/test_recipes.py"}
"""Tests of messages: a setting that is only wrong there is not used."""
OVERRIDE = re.compile(r"([a-z][a-z0-9_]*(?:\.[a-z0-9_]+)*)=(.*)", re.DOTALL)


def uses() -> dict[str, list[str]]:
    """Path of a setting -> the recipes, benchmarks and tests that set it, in this order."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in recipe_names():
        values = yaml.safe_load((recipe_folder() / f"{name}.yaml").read_text(encoding="utf-8"))
        for path in _keys(values, ""):
            found[path].append(f"configs/{name}.yaml")
    for folder in ("benchmarks", "tests"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            place = file.relative_to(ROOT).as_posix()
            if place not in REFUSALS:
                for path in _set_in(ast.parse(file.read_text(encoding="utf-8"))):
                    found[path].append(place)
    leaves = {path for setting in settings() for path in setting.paths}
    for path in [path for path in found if path not in leaves]:  # a key of a setting of keys
        outer = path.rpartition(".")[0]
        if outer in leaves:
            found[outer] += found[path]
    return found


def _keys(value: Any, path: str) -> Iterator[str]:
    """Paths that a value of a recipe sets; an item of a list of settings has its list's path."""
    items = value if isinstance(value, list) and value and isinstance(value[0], dict) else [value]
    for item in items:
        if isinstance(item, dict):
            for key, inner in item.items():
                yield from _keys(inner, f"{path}.{key}" if path else str(key))
        else:
            yield path


def _set_in(tree: ast.Module) -> Iterator[str]:
    """What overrides (`"r1.gamma=0.1"`) and the schema's own classes, called by name, set."""
    owners: dict[str, list[Setting]] = defaultdict(list)
    for setting in settings():
        owners[setting.owner.__name__].append(setting)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            override = OVERRIDE.fullmatch(node.value)
            if override:
                try:
                    yield from _keys(yaml.safe_load(override[2]), override[1])
                except yaml.YAMLError:  # the start of an f-string
                    yield override[1]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            given = {keyword.arg for keyword in node.keywords}
            for setting in owners[node.func.id]:
                if setting.name in given:
                    yield from setting.paths


def page() -> str:
    """docs/settings.md."""
    used, sections = uses(), defaultdict(list)
    for setting in settings():
        sections[setting.owner].append(setting)
    parts = [INTRODUCTION]
    for owner, fields in sections.items():
        places = dict.fromkeys(f"`{path.rpartition('.')[0]}`" for path in fields[0].paths)
        title = ", ".join(places) if "``" not in places else TITLES[owner.__name__]
        parts.append(f"## {title}\n\n{' '.join((inspect.getdoc(owner) or '').split())}\n")
        parts.append("| setting | default | meaning | used in |\n|---|---|---|---|")
        for setting in fields:
            at = next((place for path in setting.paths for place in used[path]), "")
            default = f"`{setting.default}`" if setting.default else ""
            meaning = setting.meaning.replace("|", "\\|")
            parts.append(f"| `{setting.shown}` | {default} | {meaning} | {at} |")
        parts.append("")
    return "\n".join(parts).rstrip() + "\n"


TITLES = {
    "RunSettings": "Every training",
    "PretrainSettings": "`fasttrain pretrain`",
    "GeneratorSettings": "Trainings of a few-step generator",
    "GanSettings": "The GAN objective",
    "FinetuneSettings": "`fasttrain finetune`",
    "DistillSettings": "`fasttrain distill`",
    "BesideGanSettings": "Trainings beside the GAN objective",
    "ScoreSettings": "`fasttrain score`",
    "MeanFlowSettings": "`fasttrain meanflow`",
    "FrechetSettings": "`fasttrain frechet`",
}

INTRODUCTION = """\
# Settings

Every setting of a recipe: a YAML file in `configs/`, or your own. `a.b=value` on the command line
overrides `a: {b: value}`; `fasttrain finetune RECIPE --dry-run` prints the resolved settings. The
last column names one place that sets it: the first recipe, else a benchmark, else a test of its
effect. A setting that nothing sets is not in the schema.

Made from the code by `python -m tests.settings_page > docs/settings.md`.
"""

if __name__ == "__main__":
    print(page(), end="")
