"""The GPU benchmark's command, rehearsed on the CPU: the file, its table, the page."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import page
from benchmarks.gpu import __main__ as command
from benchmarks.gpu import rows as rows_module
from benchmarks.gpu.case import AGAIN, COMPILE, COPY, EAGER, OURS
from benchmarks.gpu.parts import slug
from benchmarks.gpu.table import as_markdown
from benchmarks.performance_page import aot_part, memory_part
from tests.benchmarks.support import row


def test_the_rehearsal_is_whole_and_says_what_it_is(
    rehearsal: tuple[int, dict[str, Any], str],
) -> None:
    status, result, table = rehearsal
    assert status == 0
    assert result["rehearsal"] is True
    assert result["complete"] is True
    assert result["left_out"] == []
    assert {row["op"] for row in result["rows"]} == {
        "group_norm", "attention", "residual_scale", "resample2d", "counter_normal", "ema",
    }  # fmt: skip
    assert set(result["machine"]) >= {"gpu", "driver", "torch", "triton", "date", "commit"}
    for rate in ("copy", "matrix"):
        assert result["rates"][rate]["per_second"] > 0
    assert "REHEARSAL" in table
    assert as_markdown(result) + "\n" == table


def test_every_row_of_the_file_is_complete(rehearsal: tuple[int, dict[str, Any], str]) -> None:
    _, result, _ = rehearsal
    keys = {"op", "case", "direction", "layout", "dtype", "shapes", "bytes", "flops", "columns",
            "errors", "kernels", "loss", "wrong", "failed", "noise", "gb_s", "of_copy",
            "of_same_size_copy"}  # fmt: skip
    for made in result["rows"]:
        assert keys <= set(made)
        assert {EAGER, COMPILE, OURS, AGAIN, COPY} <= set(made["columns"])
        for values in made["columns"].values():
            assert set(values) in (
                {"error"},
                {"median_ms", "p20_ms", "p80_ms", "repetitions"},
            )
        ours = made["columns"][OURS]
        assert 0 < ours["p20_ms"] <= ours["median_ms"] <= ours["p80_ms"]
        # What the table says follows from the file.
        assert made["gb_s"] == pytest.approx(made["bytes"] / ours["median_ms"] / 1e6, rel=1e-4)
        expected = rows_module.judge(made, rows_module.TOLERANCE[_dtype(made)], result["rates"])
        assert made["loss"] == expected["loss"]


def _dtype(made: dict[str, Any]) -> torch.dtype:
    dtype = getattr(torch, made["dtype"])
    assert isinstance(dtype, torch.dtype)
    return dtype


def test_the_table_shows_every_row_error_and_mark(
    rehearsal: tuple[int, dict[str, Any], str],
) -> None:
    _, result, table = rehearsal
    for made in result["rows"]:
        start = f"| {made['case']} {made['layout']} {made['dtype']} | {made['direction']} |"
        line = next(line for line in table.splitlines() if line.startswith(start))
        assert f"{made['columns'][OURS]['median_ms']:.4g} (" in line
        for name in made["loss"]:
            assert name in line.split("LOSS to")[1]
        for values in made["columns"].values():
            assert values.get("error", "") in table
    lost = row(eager=0.5, ours=1.0, again=1.0, library="it broke")
    lost |= {"wrong": ["dx"], "errors": {OURS: {"dx": 0.3}, EAGER: {"dx": 0.002}}}
    left = {"op": "attention", "case": "S=9", "layout": "NHWC", "why": "no budget was left"}
    text = as_markdown({**result, "rows": [lost], "left_out": [left], "complete": False})
    assert "**LOSS to eager**" in text
    assert "**WRONG: dx**" in text
    assert "dx 3.0e-01 (2.0e-03)" in text
    assert "[1] it broke" in text
    assert "attention S=9 NHWC: no budget was left" in text
    assert "INCOMPLETE" in text


@pytest.mark.parametrize(
    "arguments",
    [
        ["--device", "cpu", "--out", "x.json"],
        ["--device", "cpu", "--quick"],
        ["--device", "cpu", "--quick", "--out", str(command.RESULTS / "gpu.json")],
        ["--device", "cpu", "--quick", "--out", "x.json", "--parts", "opps"],
        *([] if torch.cuda.is_available() else [[]]),
    ],
)
def test_a_rehearsal_never_passes_for_a_result(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        command.main(arguments)
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()[-1]) > 20


def test_the_file_of_a_gpu_is_named_after_it() -> None:
    assert slug("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


# ------------------------------------------------------------------------------------- the page


def test_counted_memory_in_words() -> None:
    counts = {"net": {"eager": 200_000_000, "library": 90_000_000, "ours": 50_000_000}}
    text = memory_part({"torch": "2", "bytes_per_image": counts})
    assert "| net | 200.0 | 90.0 | 50.0 | 25% |" in text


@pytest.mark.parametrize("name", page.PAGES)
def test_every_table_of_a_page_follows_from_its_file(name: str) -> None:
    text = (page.DOCS / name).read_text()
    parts = page.PAGES[name](page.RESULTS)
    assert page.rewritten(text, parts) == text, "run python -m benchmarks.page"


def test_the_page_summarises_compiled_kernels_and_takes_gpu_files_but_no_rehearsal(
    tmp_path: Path, rehearsal: tuple[int, dict[str, Any], str]
) -> None:
    kernel = {"kernel": "op", "arch": "sm_90", "spills": 0, "wide_loads": True}
    rows = [
        {**kernel, "variant": "a", "registers": 90, "shared_bytes": 64},
        {**kernel, "variant": "b", "registers": 128, "shared_bytes": 16, "spills": 8},
        {**kernel, "variant": "a", "registers": 40, "shared_bytes": 0, "arch": "sm_100"},
    ]
    text = aot_part(rows)
    assert "| `op` | sm_90 | 2 | 128 | 8 | 64 | all |" in text
    assert text.index("sm_90") < text.index("sm_100")

    for path in page.RESULTS.glob("*.json"):
        if not path.name.startswith("gpu"):
            shutil.copy(path, tmp_path)
    (tmp_path / "aot.json").write_text(json.dumps(rows))
    (tmp_path / "cpu.json").write_text(json.dumps(rehearsal[1]))
    parts = page.performance(tmp_path)
    del parts["norm-forms"]  # of kernels that are not among these rows
    marks = "\n".join(f"<!-- begin {n} -->\n\n<!-- end {n} -->" for n in parts)
    assert "No measurement on a GPU exists yet" in page.rewritten(marks, parts)
    (tmp_path / "gpu.json").write_text(json.dumps(rehearsal[1] | {"rehearsal": False}))
    measured = page.rewritten(marks, parts)
    assert "benchmarks/results/gpu.json" in measured
    assert "#### attention" in measured
    assert "No measurement" not in measured
    with pytest.raises(ValueError, match="begin demo"):
        page.rewritten(marks.replace("begin demo", "begin demos"), page.performance(tmp_path))
