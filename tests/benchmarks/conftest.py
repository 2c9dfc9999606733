"""One rehearsal of the GPU benchmark for all tests that look at it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from benchmarks.gpu import __main__ as command


@pytest.fixture(scope="session")
def rehearsal(tmp_path_factory: pytest.TempPathFactory) -> tuple[int, dict[str, Any], str]:
    """One rehearsal of the whole command: exit status, result, table."""
    out = tmp_path_factory.mktemp("rehearsal") / "result.json"
    before = sorted(path.name for path in command.RESULTS.iterdir())
    status = command.main(["--device", "cpu", "--quick", "--out", str(out)])
    assert sorted(path.name for path in command.RESULTS.iterdir()) == before
    return status, json.loads(out.read_text()), out.with_suffix(".md").read_text()
