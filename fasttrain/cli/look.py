"""Verbs that look things up: explain, schema, runs. None of them needs torch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from fasttrain.cli import completing
from fasttrain.cli.options import LOOK, AsJson, app
from fasttrain.system.errors import UserError


@app.command(rich_help_panel=LOOK)
def explain(
    setting: Annotated[
        str,
        typer.Argument(
            help="A setting: r1.gamma, gamma, or all of r1; or another's name, lr.",
            autocompletion=completing.settings,
        ),
    ],
    as_json: AsJson = False,
) -> None:
    """Say what a setting means, its default, and which recipes set it.

    Example: fasttrain explain r1.gamma
    """
    from fasttrain.settings.described import find
    from fasttrain.settings.recipes import values_in_recipes

    found = [(path, row) for row in find(setting) for path in row.paths]
    used = {path: values_in_recipes(path) for path, _ in found}
    if as_json:
        rows = [
            {
                "setting": path,
                "default": row.default or None,
                "meaning": row.meaning,
                "recipes": used[path],
            }
            for path, row in found
        ]
        print(json.dumps(rows, indent=1))
        return
    for path, row in found:
        print(path)
        print(f"  {row.meaning}")
        print(f"  default: {row.default}" if row.default else "  a recipe must set it")
        for value in dict.fromkeys(used[path].values()):
            names = [name for name, own in used[path].items() if own == value]
            more = f", and {len(names) - 3} more" if len(names) > 3 else ""
            print(f"  {value} in {', '.join(names[:3])}{more}")


@app.command(rich_help_panel=LOOK)
def schema(
    task: Annotated[
        str,
        typer.Argument(
            help="pretrain or finetune: whose recipes.", autocompletion=completing.tasks
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="The file to write; default: print it.")] = None,
) -> None:
    """Write the JSON schema of recipes, with which an editor completes and checks them.

    Its first line then is: # yaml-language-server: $schema=FILE
    Example: fasttrain schema finetune --out finetune.schema.json
    """
    from fasttrain.settings.described import json_schema
    from fasttrain.settings.trainings import TRAININGS
    from fasttrain.system.files import probe, write_atomic

    if task not in TRAININGS:
        raise UserError(f"{task}: choose one of {', '.join(TRAININGS)}")
    text = json.dumps(json_schema(TRAININGS[task].schema), indent=1)
    if out is None:
        print(text)
        return
    probe(out)
    write_atomic(out, text)
    print(f"schema: {out}")


@app.command(rich_help_panel=LOOK)
def runs(
    folder: Annotated[Path, typer.Argument(help="Where to look, three levels deep.")] = Path(
        "runs"
    ),
    as_json: AsJson = False,
) -> None:
    """List runs: state, images, metric, age and process.

    Example: fasttrain runs --json
    """
    from fasttrain.checkpoints.listing import runs_in, table

    found = runs_in(folder)
    if as_json:
        print(json.dumps([run.to_dict() for run in found], indent=1))
    else:
        print("\n".join(table(found)) if found else f"no runs in {folder}")
