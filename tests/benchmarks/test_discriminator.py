"""The discriminator's benchmark: a rehearsal of it, what it records, and its table."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import discriminator
from benchmarks.gpu.parts import discriminator as part

STEPS = ["discriminator step", "generator's pass", "exact R1"]


def test_a_rehearsal_measures_every_step_and_the_columns_agree(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "result.json"
    monkeypatch.setattr(sys, "argv", ["discriminator", "--quick", "--out", str(out)])
    discriminator.main()
    result = json.loads(out.read_text())
    (case,) = result["cases"]
    assert list(case["steps"]) == STEPS
    for row in case["steps"].values():
        assert set(row) == {"plain float32", "ours float32"}
        assert all(column["median_ms"] > 0 for column in row.values())
    assert case["agreement"]["plain float32"] == {"logits": 0.0, "gradient": 0.0}
    assert 0 < case["agreement"]["ours float32"]["logits"] < 1e-2
    assert 0 < case["agreement"]["ours float32"]["gradient"] < 3e-2
    assert case["random_features"] == []
    assert case["out_of_memory"] == {}
    assert "| step | plain float32 | ours float32 |" in capsys.readouterr().out


def test_the_table_names_what_ran_out_of_memory() -> None:
    def time(ms: float) -> dict[str, Any]:
        return {"median_ms": ms, "peak_bytes": 2.5e9}

    case = {
        "case": {"name": "x", "batch": 2, "image": [3, 8, 8], "backbones": ["a"], "resolution": 8},
        "agreement": {name: {"logits": 0.0} for name in ("plain float32", "ours bfloat16")},
        "steps": {
            "discriminator step": {"plain float32": time(30.0), "ours bfloat16": time(10.0)},
            "exact R1": {"ours bfloat16": time(10.0)},
        },
        "out_of_memory": {"exact R1": ["plain float32"]},
    }
    table = discriminator.as_markdown({"cases": [case]})
    assert "| discriminator step | 30.0 ms (1.00x, 2.5 GB) | 10.0 ms (3.00x, 2.5 GB) |" in table
    assert "| exact R1 | out of memory | 10.0 ms (2.5 GB) |" in table


@pytest.mark.parametrize(
    ("status", "key"), [(0, "cases"), (1, "error"), (None, "left_out")], ids=str
)
def test_the_gpu_benchmark_takes_in_the_result_or_says_why_not(
    status: int | None, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], seconds: float, log: Path) -> dict[str, Any]:
        assert "--no-compile" in command
        log.write_text("Traceback\nRuntimeError: broken")
        if status == 0:
            Path(command[command.index("--out") + 1]).write_text('{"cases": [1]}')
        return {"exit_status": status, "timed_out": status is None}

    monkeypatch.setattr("benchmarks.gpu.parts.run_limited", run)
    result = part("cuda", 9.0, tmp_path / "folder", compiled=False)
    assert {"cases", "error", "left_out"} & set(result) == {key}
    if status == 1:
        assert "RuntimeError: broken" in result["error"]
