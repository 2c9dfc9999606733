"""Settings on the command line, `a.b=c`.

values = {"r1": {"gamma": 1.0}}
apply_override(values, "r1.gamma=0.1")
"""

from __future__ import annotations

from typing import Any

import yaml

from fasttrain.settings.mistakes import did_you_mean
from fasttrain.settings.yaml_text import parse_yaml
from fasttrain.system.errors import UserError

__all__ = ["apply_override", "refuse_option"]


def apply_override(values: dict[str, Any], override: str) -> None:
    """Set a value of a recipe. Raises UserError for text that is not an override, NAME=VALUE."""
    refuse_option(override)
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
        node[last] = parse_yaml(text)
    except yaml.YAMLError:
        raise UserError(f"{override!r}: the value is not valid YAML") from None


def refuse_option(word: str) -> None:
    """Raises UserError for a word of the command line that looks like an option and is none."""
    name, _, text = word.partition("=")
    if not name.startswith("-"):
        return
    if name in ("--dry-run", "--help"):
        raise UserError(f"{name} belongs to the command itself: `fasttrain finetune RECIPE {name}`")
    if close := did_you_mean(name, ["--dry-run", "--help"]):
        raise UserError(f"no option {name}{close}")
    plain = name.lstrip("-").replace("-", "_")
    raise UserError(f"no option {name}: a setting is written as {plain}={text or 'VALUE'}")
