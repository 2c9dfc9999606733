"""What a shell proposes on the Tab key: recipes, settings, runs and models, read from small files;
nothing here imports torch.

fasttrain --install-completion            # bash, zsh, fish
fasttrain finetune digits-d2o-f r1.<Tab>
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import typer

from fasttrain.settings.registry import EXTRACTORS, SHELF

__all__ = ["extractors", "formats", "models", "recipes", "runs", "settings", "tasks"]

FORMATS = ("safetensors", "diffusers", "onnx", "hub")


def recipes(context: typer.Context, incomplete: str) -> list[str]:
    """Recipes of the verb's own training, and YAML files."""
    from fasttrain.settings.recipes import recipe_folder, recipe_names

    folder, own = recipe_folder(), f"task: {context.info_name}"
    names = []
    for name in recipe_names():
        lines = (folder / f"{name}.yaml").read_text(encoding="utf-8").splitlines()
        task = next((line for line in lines if line.startswith("task:")), own)
        if task == own or context.info_name in ("plan", "profile"):
            names.append(name)
    files = (path for path in _paths(incomplete) if path.endswith((".yaml", ".yml", "/")))
    return [*_begun(names, incomplete), *files]


def settings(context: typer.Context, incomplete: str) -> list[str]:
    """Settings of the verb's own training, as overrides begin: `r1.gamma=`."""
    from fasttrain.settings.described import settings as known
    from fasttrain.settings.trainings import TRAININGS

    names = [path for each in known() for path in each.paths]
    row = TRAININGS.get(str(context.info_name))
    if row is None:  # `explain` takes any
        return _begun(dict.fromkeys(names), incomplete)
    fields = {field.alias or name for name, field in row.schema.model_fields.items()}
    own = (f"{name}=" for name in dict.fromkeys(names) if name.split(".")[0] in fields)
    return _begun(own, incomplete)


def runs(incomplete: str) -> list[str]:
    """Run directories, and folders on the way to one."""
    return [path for path in _paths(incomplete) if path.endswith("/")]


def models(incomplete: str) -> list[str]:
    """Models of the package, folders and files."""
    return [*_begun(SHELF, incomplete), *_paths(incomplete)]


def formats(incomplete: str) -> list[str]:
    return _begun(FORMATS, incomplete)


def extractors(incomplete: str) -> list[str]:
    return _begun(EXTRACTORS, incomplete)


def tasks(incomplete: str) -> list[str]:
    from fasttrain.settings.trainings import TRAININGS

    return _begun(TRAININGS, incomplete)


def _begun(words: Iterable[str], incomplete: str) -> list[str]:
    return [word for word in words if word.startswith(incomplete)]


def _paths(incomplete: str) -> list[str]:
    """Files and folders that begin so, the latter with a slash; hidden ones when asked for."""
    inside = incomplete.rpartition("/")[0]
    folder = Path(inside or ("/" if incomplete.startswith("/") else "."))
    head = f"{inside}/" if "/" in incomplete else ""
    try:
        found = [f"{head}{p.name}/" if p.is_dir() else f"{head}{p.name}" for p in folder.iterdir()]
    except OSError:
        return []
    hidden = incomplete.rpartition("/")[2].startswith(".")
    return sorted(
        path
        for path in found
        if path.startswith(incomplete) and (hidden or not path.removeprefix(head).startswith("."))
    )
