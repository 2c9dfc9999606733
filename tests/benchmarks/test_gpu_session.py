"""The GPU benchmark's parts over several calls, and the folder that it brings along."""

from __future__ import annotations

import ast
import importlib.util
import json
import tomllib
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pip._vendor.packaging.requirements import Requirement

from benchmarks.gpu import __main__ as command
from benchmarks.gpu import bundle, session
from benchmarks.gpu.case import Case
from tests.benchmarks.support import Spent


@pytest.mark.slow
def test_a_second_call_completes_what_the_first_left(
    rehearsal: tuple[int, dict[str, Any], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that are done are not run again, operators that have rows not measured again, and
    another machine, commit or version begins a new file."""
    out = tmp_path / "result.json"
    old = json.loads(json.dumps(rehearsal[1]))
    gone = old["rows"].pop()["case"]
    old["rows"] = [made for made in old["rows"] if made["case"] != gone]
    del old["done"]["ops"]
    out.write_text(json.dumps(old))
    ran: list[str] = []

    def measured(case: Case, **options: Any) -> list[dict[str, Any]]:
        ran.append(case.name)
        return [made for made in rehearsal[1]["rows"] if made["case"] == case.name]

    monkeypatch.setattr(command, "rows_of", measured)
    monkeypatch.setattr(command, "machine", lambda device: old["machine"])
    arguments = ["--device", "cpu", "--quick", "--out", str(out)]
    assert command.main([*arguments, "--parts", "ops"]) == 0
    assert set(ran) == {gone}
    new = json.loads(out.read_text())
    assert list(new["done"]) == ["rates", "ops"]
    assert len(new["rows"]) == len(rehearsal[1]["rows"])
    assert session.pending(new, None) == [p for p in session.PARTS if p not in ("rates", "ops")]

    other = session.fresh(old["machine"] | {"commit": "f00"}, rehearsal=True, backend="eager")
    assert session.earlier(out, other) is None
    assert session.earlier(tmp_path / "none.json", other) is None


def test_parts_without_time_are_left_and_the_first_call_keeps_to_its_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spent = Spent(100.0)
    monkeypatch.setattr(command, "Budget", lambda seconds: spent)
    limits: dict[str, float] = {}

    def part(name: str) -> Any:
        def run(self: command.Session, limit: float, folder: Path) -> bool:
            limits[name] = limit
            spent.used += limit
            return name != "rates"

        return run

    for name in session.PARTS:
        monkeypatch.setattr(command.Session, name, part(name))
    out = tmp_path / "result.json"
    parts = ",".join(reversed(session.PARTS))
    quick = ["--device", "cpu", "--quick", "--out", str(out)]
    assert command.main([*quick, "--budget", "100", "--parts", parts]) == 0
    assert limits == {"check": 60.0, "rates": 15.0, "ops": 25.0}
    result = json.loads(out.read_text())
    assert (list(result["done"]), result["complete"]) == (["check", "ops"], False)
    assert sum(session.SHARES.values()) <= 13 * 60
    assert session.share_of("ops", 2 * sum(session.SHARES.values())) == 2 * session.SHARES["ops"]


# ---------------------------------------------------------------------------------------- bundle


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    """A wheel of one module that says its version."""
    about = f"{name}-{version}.dist-info"
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {need}" for need in needs]
    files = {
        f"{name}.py": f"VERSION = {version!r}",
        f"{about}/METADATA": "\n".join(lines) + "\n",
        f"{about}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{about}/RECORD"] = "".join(f"{path},,\n" for path in (*files, f"{about}/RECORD"))
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in files.items():
            archive.writestr(path, text)


def test_what_a_machine_lacks_is_taken_with_what_that_needs(tmp_path: Path) -> None:
    wheel(tmp_path, "upper", "2.0", "core==2.0", "there", 'other; sys_platform == "win32"')
    wheel(tmp_path, "core", "2.0", "absent>=1", 'more; extra == "all"')
    wheel(tmp_path, "there", "3.0")
    has = {"there": "1.0", "core": "1.9"}
    asked = [Requirement("upper>=1"), Requirement("there>=1")]
    paths, missing = bundle.chosen(bundle.wheels_of(tmp_path), has.get, asked)
    assert [path.name[:4] for path in paths] == ["uppe", "core"]  # core as upper wants it
    assert missing == ["absent"]
    paths, _ = bundle.chosen(bundle.wheels_of(tmp_path), has.get, [Requirement("there>=2")])
    assert [path.name[:5] for path in paths] == ["there"]
    assert bundle.chosen({}, has.get, [Requirement("there>=2")]) == ([], [])


@pytest.mark.slow
def test_the_folder_is_the_only_source(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wheel(tmp_path / "wheels", "only_brought", "1.5")
    monkeypatch.setattr(bundle, "requirements", lambda: [Requirement("only-brought")])
    assert bundle.main(["site", str(tmp_path)]) == 0
    place = Path(capsys.readouterr().out.strip())
    found = importlib.util.spec_from_file_location("only_brought", place / "only_brought.py")
    assert found is not None
    assert found.loader is not None
    module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)
    assert module.VERSION == "1.5"


def test_a_folder_of_something_else_is_not_cleared(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "letter.txt").write_text("kept")
    assert bundle.main(["make", str(tmp_path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")
    assert (tmp_path / "letter.txt").read_text() == "kept"


def test_every_requirement_has_its_version() -> None:
    """Of constraints.txt: what is brought along is what the tests ran with."""
    pins = bundle._pins()
    left = (*bundle.THERE, *bundle.SPARED)
    names = [bundle.canonicalize_name(r.name) for r in bundle.requirements()]
    assert [name for name in names if name not in pins and name not in left] == []


def test_the_kernels_tests_import_nothing_that_the_bundle_lacks() -> None:
    """A module that is missing there would end the whole part, not the test that needs it."""
    project = tomllib.loads((bundle.ROOT / "pyproject.toml").read_text())["project"]
    only_tested = {Requirement(text).name for text in project["optional-dependencies"]["test"]}
    spared = {name.replace("-", "_") for name in only_tested - set(bundle.TESTS)}
    modules = [*(bundle.ROOT / "tests" / "kernels").glob("*.py")]
    modules.append(bundle.ROOT / "tests" / "discriminator" / "test_peers.py")
    for path in modules:
        for node in ast.parse(path.read_text()).body:  # imports within a function end one test
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not spared & {name.partition(".")[0] for name in names}, path
