"""The reference of the docs, from the parser and the docstrings: docs/commands.md, docs/api.md.

python -m tests.reference_pages           # writes both
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import typer

from fasttrain.cli import python
from fasttrain.cli.app import app
from fasttrain.cli.options import GROUPS
from fasttrain_data.cli import app as data_app

ROOT = Path(__file__).parents[1]


def commands() -> str:
    """Every verb of both commands with its options."""
    parts = ["# Commands\n\nWritten from the parsers by `python -m tests.reference_pages`."]
    tree: Any = typer.main.get_command(app)
    for group in GROUPS:
        parts.append(f"## {group}")
        for name in sorted(tree.commands):
            if tree.commands[name].rich_help_panel == group:
                parts.append(verb("fasttrain", tree.commands[name]))
    parts.append("## Data: `fasttrain-data`")
    data: Any = typer.main.get_command(data_app)
    parts += [verb("fasttrain-data", data.commands[name]) for name in sorted(data.commands)]
    return "\n\n".join(parts) + "\n"


def verb(program: str, command: Any) -> str:
    arguments = [p for p in command.params if p.param_type_name == "argument"]
    named = [p.metavar or p.name.upper() for p in arguments]
    words = " ".join("-- COMMAND" if name.startswith("--") else name for name in named)
    rows = [
        f"| `{', '.join(p.opts)}` | {cell(p.help or '')} |"
        for p in command.params
        if p.param_type_name == "option" and not p.hidden and p.name != "help"
    ]
    table = ["| option | |", "|---|---|", *rows] if rows else []
    text = inspect.cleandoc(command.help or "")
    example = [line.strip() for line in text.splitlines() if line.strip().startswith("Example:")]
    prose = " ".join(line for line in text.splitlines() if not line.strip().startswith("Example:"))
    shown = [f"    {line.removeprefix('Example:').strip()}" for line in example]
    blocks = [
        f"### {program} {command.name}",
        f"`{' '.join(filter(None, (program, command.name, words)))}`",
        " ".join(prose.split()),
        "\n".join(shown),
        "\n".join(table),
    ]
    return "\n\n".join(filter(None, blocks))


def cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def api() -> str:
    """The public names of `fasttrain`, with their signatures and docstrings."""
    parts = ["# API\n\nWritten from the docstrings by `python -m tests.reference_pages`.\n"]
    for name in sorted(python.__all__):
        thing = getattr(python, name)
        parts.append(f"## {name}\n\n{described(name, thing)}")
        if inspect.isclass(thing):
            for inner, value in vars(thing).items():
                function = value.fget if isinstance(value, property) else value
                if not inner.startswith("_") and inspect.isfunction(function):
                    shown = f"{name}.{inner}"
                    parts.append(f"### {shown}\n\n{described(shown, function)}")
    return "\n".join(parts)


def described(name: str, thing: Callable[..., Any]) -> str:
    text = inspect.cleandoc(thing.__doc__ or "")
    return f"```text\n{name}{inspect.signature(thing)}\n\n{text}\n```\n"


PAGES = {"docs/commands.md": commands, "docs/api.md": api}


if __name__ == "__main__":
    for path, write in PAGES.items():
        (ROOT / path).write_text(write(), encoding="utf-8")
