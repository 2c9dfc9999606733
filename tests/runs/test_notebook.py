"""The notebook of the docs, cell by cell, with its own switch for a quick look."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[2] / "docs" / "digits.ipynb"


@pytest.mark.slow
def test_it_goes_from_digits_to_a_one_step_generator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    book = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    assert book["nbformat"] == 4
    names: dict[str, Any] = {}
    for cell in book["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] != "code" or source.startswith("%pip"):
            continue
        assert cell["outputs"] == []  # nothing that only some machine has shown
        exec(compile(source.replace("QUICK = False", "QUICK = True"), cell["id"], "exec"), names)
    work = tmp_path / "digits-notebook"
    assert {path.name for path in work.glob("*.png")} == {"teacher.png", "before.png", "after.png"}
    assert names["sevens"].shape == (8, 1, 8, 8)
    assert set(names["result"]["rows"]) == {
        "real_floor", "teacher_18", "one_step_before", "one_step_after"
    }  # fmt: skip
    assert (work / "hub" / "preview.png").is_file()
    page = (work / "playground" / "index.html").read_text(encoding="utf-8")
    assert '"teacher"' in page
    assert "WebAssembly" in page
