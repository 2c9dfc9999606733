"""The whole fault matrix, run by one process of its own that forks (`python -m tests.faults`)."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "faults.json"
NAMES = [row["name"] for row in json.loads(RESULT.read_text())["rows"]]


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    out = tmp_path_factory.mktemp("faults") / "faults.json"
    done = subprocess.run(
        [sys.executable, "-m", "tests.faults", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1500,
        check=False,
    )
    assert out.exists(), done.stdout[-2000:] + done.stderr[-4000:]
    return {row["name"]: row for row in json.loads(out.read_text())}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_what_was_promised_survives(rows: dict[str, Any], name: str) -> None:
    assert not rows[name]["problem"], rows[name]["problem"]


@pytest.mark.slow
def test_the_page_has_every_fault_of_the_matrix(rows: dict[str, Any]) -> None:
    """docs/reliability.md is made from the result file."""
    published = json.loads(RESULT.read_text())["rows"]
    assert [{**row, "problem": ""} for row in rows.values()] == published
    assert len(published) >= 25
