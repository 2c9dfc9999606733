"""The walls of the house (docs/architecture.md): arrows point down, no circles, no crowded file."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.house import ROOMS, House, Module, mermaid, room

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def house() -> House:
    return House.of(ROOT)


def test_arrows_point_down(house: House) -> None:
    assert house.arrows_back() == []


def test_no_files_import_each_other_in_a_circle(house: House) -> None:
    assert house.circles() == []


def test_every_module_is_in_a_room(house: House) -> None:
    outside = {name for name in house.modules if name.startswith("fasttrain.") and not room(name)}
    assert outside == {"fasttrain.__main__"}


def test_who_may_import_what(house: House) -> None:
    assert house.importers("deepspeed") == {
        "fasttrain.training.engines.zero",
    }
    assert house.importers("torch.distributed") == {"fasttrain.system.processes"}


def test_no_file_is_over_300_lines(house: House) -> None:
    """Not of the packages, their tests, or their benchmarks."""
    paths = [module.path for module in house.modules.values()]
    paths += [path for folder in ("tests", "benchmarks") for path in (ROOT / folder).rglob("*.py")]
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in paths}
    assert not {path: count for path, count in lines.items() if count > 300}


def test_no_test_imports_benchmarks_but_those_of_the_benchmarks() -> None:
    for path in (ROOT / "tests").rglob("*.py"):
        if path.is_relative_to(ROOT / "tests" / "benchmarks"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module]
            assert not any(n.split(".")[0] == "benchmarks" for n in names), f"{path}: {names}"


def test_the_picture_of_the_architecture_is_that_of_the_code(house: House) -> None:
    assert mermaid(house) in (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8"), (
        "paste the output of: python -m tests.house --mermaid"
    )


def test_a_broken_wall_is_noticed() -> None:
    """An arrow back, a circle, and an import of fasttrain by a package that must not know it."""

    def module(name: str, *imports: str) -> Module:
        return Module(name, Path(), ast.Module([], []), 1, set(imports))

    low, high = f"fasttrain.{ROOMS[-1]}.a", f"fasttrain.{ROOMS[0]}.b"
    kernel = "fasttrain_kernels.c"
    house = House(
        {
            low: module(low, high),
            high: module(high, low, kernel),
            kernel: module(kernel, low),
        }
    )
    assert house.arrows_back() == [f"{low} imports {high}", f"{kernel} imports {low}"]
    assert house.circles() == [sorted([low, high, kernel])]
