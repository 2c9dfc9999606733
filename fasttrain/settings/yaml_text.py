"""The YAML of recipes, which may be anyone's: bounded, no duplicate keys, numbers of YAML 1.2.

read_yaml(path)                     # a mapping, or UserError with the line of the mistake
parse_yaml("[1, 5e-4]")
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from fasttrain.system.errors import UserError
from fasttrain.system.files import read_bytes

__all__ = ["parse_yaml", "read_yaml"]

MAX_BYTES, MAX_VALUES, MAX_DEPTH = 1 << 17, 10_000, 50
"""Size limit of a recipe and of a run's settings."""


class _Loader(yaml.SafeLoader):
    """YAML 1.2 numbers (PyYAML reads `5e-4` as text); dates stay plain text."""


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}

_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$"), list("-+0123456789")
)


def parse_yaml(text: str) -> Any:
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


def read_yaml(path: Path) -> dict[str, Any]:
    try:
        values = parse_yaml(read_bytes(path, MAX_BYTES).decode())
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
