"""The structure of the packages as their imports show it: rooms (folders of `fasttrain/`), arrows
between them, circles, sizes.

    house = House.of(Path("."))
    house.arrows_back(ROOMS), house.circles()      # both empty, or a wall is broken

`python -m tests.house` prints the counts, `python -m tests.house --mermaid` the picture of
docs/architecture.md.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

ROOMS = (
    "cli",
    "analysis",
    "training",
    "evaluation",
    "discriminator",
    "sampling",
    "models",
    "data",
    "checkpoints",
    "settings",
    "system",
)
"""From the top down: a room imports from itself and from rooms after it."""
PACKAGES = {"fasttrain": ".", "fasttrain_kernels": "kernels", "fasttrain_data": "data_tools"}
"""Import package -> the folder it lies in."""


@dataclass
class Module:
    """One file: what it imports of ours, by full name of module, and of others."""

    name: str
    path: Path
    tree: ast.Module
    lines: int
    imports: set[str] = field(default_factory=set)
    foreign: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class House:
    """All modules of the three packages by name."""

    modules: dict[str, Module]

    @classmethod
    def of(cls, root: Path) -> House:
        modules: dict[str, Module] = {}
        for package, folder in PACKAGES.items():
            for path in sorted((root / folder / package).rglob("*.py")):
                parts = path.relative_to(root / folder).with_suffix("").parts
                name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
                source = path.read_text(encoding="utf-8")
                modules[name] = Module(name, path, ast.parse(source), len(source.splitlines()))
        for module in modules.values():
            for name in _imported(module.tree):
                known = _longest(name, modules)
                (module.imports if known else module.foreign).add(known or name)
        return cls(modules)

    @cached_property
    def arrows(self) -> Counter[tuple[str, str]]:
        """(room, room) -> imports from one to the other, of `fasttrain` alone."""
        found: Counter[tuple[str, str]] = Counter()
        for module in self.modules.values():
            for target in module.imports:
                ends = room(module.name), room(target)
                if all(ends) and ends[0] != ends[1]:
                    found[ends] += 1
        return found

    def arrows_back(self) -> list[str]:
        """Imports against the order of `ROOMS`, and between packages in the wrong direction."""
        wrong = []
        for module in self.modules.values():
            for target in sorted(module.imports):
                here, there = room(module.name), room(target)
                up = here and there and ROOMS.index(there) < ROOMS.index(here)
                outward = not module.name.startswith("fasttrain.") and (
                    module.name.split(".")[0] not in ("fasttrain", target.split(".")[0])
                )
                if up or outward:
                    wrong.append(f"{module.name} imports {target}")
        return wrong

    def circles(self) -> list[list[str]]:
        """Groups of files that import each other, directly or through others."""
        return [sorted(group) for group in _strong(self.modules) if len(group) > 1]

    def importers(self, package: str) -> set[str]:
        """Modules that import a foreign package, wherever in their code."""
        return {
            module.name
            for module in self.modules.values()
            if any(name == package or name.startswith(package + ".") for name in module.foreign)
        }

    def functions(self) -> Iterator[tuple[int, str]]:
        """(lines, module.function) of every function and method."""
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.FunctionDef):
                    yield (node.end_lineno or 0) - node.lineno + 1, f"{module.name}.{node.name}"

    def classes(self) -> Iterator[tuple[int, str]]:
        """(lines, module.class) of every class."""
        for module in self.modules.values():
            for node in ast.walk(module.tree):
                if isinstance(node, ast.ClassDef):
                    yield (node.end_lineno or 0) - node.lineno + 1, f"{module.name}.{node.name}"


def room(module: str) -> str:
    """The room of a module of `fasttrain`, or an empty string: `fasttrain.data.order` -> `data`."""
    parts = module.split(".")
    return parts[1] if parts[0] == "fasttrain" and len(parts) > 1 and parts[1] in ROOMS else ""


def _imported(tree: ast.Module) -> Iterator[str]:
    """Full names of what is imported anywhere in a file, but for type checkers alone."""
    skipped = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for inner in ast.walk(node)
    }
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _longest(name: str, modules: dict[str, Module]) -> str:
    """The module that a dotted name is in, or an empty string."""
    while name and name not in modules:
        name = name.rpartition(".")[0]
    return name


def _strong(modules: dict[str, Module]) -> Iterator[list[str]]:
    """Strongly connected components (Tarjan); a package's own `__init__` counts as a file."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        index[name] = low[name] = len(index)
        stack.append(name)
        for target in sorted(modules[name].imports - {name}):
            if target not in index:
                visit(target)
                low[name] = min(low[name], low[target])
            elif target in stack:
                low[name] = min(low[name], index[target])
        if low[name] == index[name]:
            at = stack.index(name)
            found.append(stack[at:])
            del stack[at:]

    for name in modules:
        if name not in index:
            visit(name)
    yield from found


def mermaid(house: House) -> str:
    """The rooms from the top down and the arrows between them."""
    lines = ["flowchart TD"]
    lines += [f'    {name}["{name}/"]' for name in ROOMS]
    lines += [f"    {source} --> {target}" for source, target in sorted(house.arrows)]
    return "\n".join(lines)


def counts(house: House) -> dict[str, object]:
    """What the size and shape of the house come to."""
    ours = [m for m in house.modules.values() if m.name.split(".")[0] == "fasttrain"]
    lines: Counter[str] = Counter()
    for module in house.modules.values():
        lines[module.name.split(".")[0]] += module.lines
    return {
        "files": len(ours),
        "rooms": len({room(module.name) for module in ours} - {""}),
        "arrows between rooms": len(house.arrows),
        "imports between rooms": sum(house.arrows.values()),
        "arrows back": len(house.arrows_back()),
        "circles of files": len(house.circles()),
        "files over 300 lines": sum(m.lines > 300 for m in house.modules.values()),
        "longest function": max(house.functions()),
        "longest class": max(house.classes()),
        "lines": dict(lines),
    }


if __name__ == "__main__":
    here = House.of(Path(__file__).parents[1])
    if sys.argv[1:] == ["--mermaid"]:
        print(mermaid(here))
    else:
        for title, value in counts(here).items():
            print(f"{title:24} {value}")
