"""What the GPU benchmark runs within its budget, in processes of their own, and its bars."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu.bars import acceptance
from benchmarks.gpu.case import Case
from benchmarks.gpu.cases import all_cases, run_cases
from benchmarks.gpu.parts import kernel_tests, profile, run_limited
from benchmarks.gpu.table import as_choices, as_markdown, broken
from benchmarks.gpu.timing import DeviceLost
from tests.benchmarks.support import Spent, cell, row

# ---------------------------------------------------------------------------------------- budget


def test_what_the_budget_leaves_out_is_named() -> None:
    budget = Spent(100)
    cases = list(all_cases(quick=True))

    def run(case: Case) -> list[dict[str, Any]]:
        budget.used += 25
        return [{"title": case.title}]

    outcome = list(run_cases(cases, run, budget, reserve=20))
    assert [case.title for case in cases[:3]] == [made[0]["title"] for made, _ in outcome if made]
    left = [entry for _, entries in outcome for entry in entries]
    assert [entry["case"] for entry in left] == [case.name for case in cases[3:]]
    assert all("budget of 100 s" in entry["why"] and not entry["failed"] for entry in left)


def test_a_broken_case_is_named_and_a_lost_gpu_ends_the_cases() -> None:
    cases = list(all_cases(quick=True))[:4]

    def run(case: Case) -> list[dict[str, Any]]:
        if case is cases[0]:
            raise RuntimeError("out of memory")
        if case is cases[2]:
            raise DeviceLost("illegal address")
        return [{"title": case.title}]

    outcome = list(run_cases(cases, run, Spent(1000), reserve=0))
    assert [bool(made) for made, _ in outcome] == [False, True, False, False]
    left = [entry for _, entries in outcome for entry in entries]
    assert left[0]["why"] == "RuntimeError: out of memory"
    assert "illegal address" in left[1]["why"]
    assert left[2]["why"] == left[1]["why"]
    assert all(entry["failed"] for entry in left)


# ---------------------------------------------------------------------------- the parts and bars


def test_a_process_is_ended_at_its_limit(tmp_path: Path) -> None:
    script = "import time; print('started', flush=True); time.sleep(60)"
    result = run_limited([sys.executable, "-c", script], 1.0, tmp_path / "log")
    assert result["timed_out"]
    assert result["seconds"] < 20
    assert (tmp_path / "log").read_text() == "started\n"


def test_the_test_run_is_recorded_with_its_failures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ["FAILED tests/kernels/test_x.py::test_a - assert 1 == 2", "=== 1 failed, 7 passed ==="]

    def run(command: list[str], seconds: float, log: Path) -> dict[str, Any]:
        assert "tests/kernels" in command
        log.write_text("\n".join(lines))
        return {"exit_status": 1, "timed_out": False}

    monkeypatch.setattr("benchmarks.gpu.parts.run_limited", run)
    result = kernel_tests(5, tmp_path / "log")
    assert result["result"] == "1 failed, 7 passed"
    assert result["failures"] == lines[:1]
    assert not result["passed"]
    assert list(broken({"tests": result, "rows": [], "left_out": [], "profile": {}}))


def test_tests_that_the_limit_ended_are_not_called_broken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But a failure that was seen before is."""
    for lines, passed in (
        (["[gw0] [ 60%] PASSED tests/kernels/x"], None),
        (["[gw0] [ 60%] FAILED tests/kernels/x", "[gw1] [ 61%] PASSED tests/kernels/y"], False),
        (["tests/kernels/x::FAILED_before PASSED", "tests/kernels/y::z ERROR   [ 60%]"], False),
    ):

        def run(command: list[str], seconds: float, log: Path, lines: Any = lines) -> Any:
            log.write_text("\n".join(lines))
            return {"exit_status": None, "timed_out": True}

        monkeypatch.setattr("benchmarks.gpu.parts.run_limited", run)
        result = kernel_tests(5, tmp_path / "log")
        assert result["passed"] is passed
        nothing: dict[str, Any] = {"rows": [], "left_out": [], "profile": {}}
        assert bool(list(broken({"tests": result, **nothing}))) == (passed is False)


def test_processes_find_what_the_caller_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packages that a machine lacks may lie in a folder of PYTHONPATH."""
    (tmp_path / "carried.py").write_text("print('found')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    result = run_limited([sys.executable, "-m", "carried"], 20, tmp_path / "log")
    assert result["exit_status"] == 0
    assert (tmp_path / "log").read_text() == "found\n"


def bars(rows: list[Any], left_out: list[Any] | None = None) -> list[bool | None]:
    return [bar["passed"] for bar in acceptance(rows, left_out or [], None)[:3]]


def test_bars_hold_fail_or_are_not_shown() -> None:
    good = row(eager=2.0, compiled=1.2, ours=1.0, again=1.0)
    slow = row(eager=2.0, compiled=2.0, ours=1.2, again=1.2)  # two thirds of the copy
    lost = row(eager=2.0, compiled=0.9, ours=1.0, again=1.0)
    assert bars([]) == [None, None, None]
    assert bars([good]) == [True, True, None]
    assert bars([good, slow]) == [False, True, None]
    assert bars([good, lost]) == [True, False, None]
    assert bars([good, row(eager=1.0, compiled="error", ours=1.0)]) == [True, None, None]
    assert bars([good, row(eager=1.0, compiled=1.0, ours="error")]) == [False, False, None]
    missing = {"op": "group_norm", "case": "768@8", "layout": "NHWC", "tags": ["adm"]}
    assert bars([good], [missing]) == [None, None, None]
    named = acceptance([good, slow], [missing], None)[0]["measured"]
    assert "192@64 NHWC forward 67 %" in named
    assert "768@8 NHWC" in named


def test_attention_is_held_against_the_best_sdpa_both_ways() -> None:
    def pair(ours: float, flash: float, cudnn: Any) -> list[dict[str, Any]]:
        made = row(eager=9.0, flash=flash, cudnn=cudnn, ours=ours, again=ours)
        about = {"op": "attention", "case": "6x64", "tags": []}
        return [{**made, **about, "direction": d} for d in ("forward", "backward")]

    assert bars(pair(1.0, 1.2, 1.0))[2] is True
    assert bars(pair(1.0, 1.2, 0.9))[2] is False
    assert bars(pair(1.0, 1.2, "no cuDNN"))[2] is True
    assert bars(pair(1.0, 1.2, 1.1)[:1])[2] is None


def made_profile(ours_ms: float = 50.0, ours_peak: int | None = 3, **about: Any) -> dict[str, Any]:
    """As `fasttrain profile` writes it, as far as it is read here."""

    def column(ms: float, peak: int | None) -> dict[str, Any]:
        above = None if peak is None else peak << 30
        generator = {"forward": cell(ms / 2), "backward": cell(ms / 2), "total": cell(ms)}
        return {
            "generator": generator | {"weight_bytes": 1 << 30, "peak_bytes_above_weights": above},
            "step": {"time": cell(4 * ms)},
            "check": {"images": 0.002, "gradient": 0.003},
        }

    phase = {"step": "generator step", "phase": "backward", "every": 1, "share": 0.25}
    configuration = {"batch": 128, "dtype": "bfloat16", "parameters": 295_899_267}
    return {
        "recipe": "imagenet64-d2o-f",
        "notes": [],
        "shrunk": False,
        "configuration": configuration,
        "columns": {"eager": column(100.0, 7), "ours": column(ours_ms, ours_peak)},
        "phases": {"rows": [phase | cell(12.5)], "images_per_second": 640.0},
        "failed": {"compile": "RuntimeError: no compiler"},
        "wrong": [],
        **about,
    }


def test_the_generators_bars_want_the_published_size_and_right_results() -> None:
    def judged(profile: dict[str, Any] | None) -> list[bool | None]:
        return [bar["passed"] for bar in acceptance([], [], profile)[3:]]

    assert judged(None) == [None, None]
    assert judged(made_profile()) == [True, True]  # exactly 2x, and 4 GiB beside 8
    assert judged(made_profile(ours_ms=51.0)) == [False, True]
    assert judged(made_profile(ours_peak=4)) == [True, False]
    assert judged(made_profile(ours_peak=None)) == [True, None]
    assert judged(made_profile(ours_ms=90.0, shrunk=True)) == [None, None]
    small = {"batch": 64, "dtype": "bfloat16", "parameters": 295_899_267}
    assert judged(made_profile(configuration=small)) == [None, None]
    assert judged(made_profile(wrong=["ours"])) == [False, True]


def test_the_profile_is_taken_in_or_its_failure_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rehearsal: tuple[int, dict[str, Any], str]
) -> None:
    def run(status: int | None, written: bool) -> dict[str, Any]:
        def limited(command: list[str], seconds: float, log: Path) -> dict[str, Any]:
            log.write_text("Traceback\nValueError: no such recipe")
            if written:
                (log.parent / "profile.json").write_text(json.dumps(made_profile()))
            return {"exit_status": status, "timed_out": status is None}

        monkeypatch.setattr("benchmarks.gpu.parts.run_limited", limited)
        return profile("r", "cuda", 9.0, tmp_path / f"{status}{written}", compiled=False)

    assert "error" not in run(0, True)
    assert run(1, True)["profile"]["recipe"] == "imagenet64-d2o-f"
    assert "no such recipe" in run(1, True)["error"]
    assert "no such recipe" in run(1, False)["error"]
    assert run(None, False)["error"] == "the time limit ended it"
    lost = {"tests": {}, "rows": [], "left_out": [], "profile": run(None, False)}
    assert list(broken(lost)) == ["profile: the time limit ended it"]

    text = as_markdown({**rehearsal[1], "profile": run(0, True)})
    assert "| ours | 25 (25 to 25) | 25 (25 to 25) | 50 (50 to 50) | 4.00 | 200 (" in text
    assert "| compile | error: RuntimeError: no compiler |" in text
    assert "| generator step | backward | 12.5 (12.5 to 12.5) | 1 | 25.0 % |" in text


def test_the_choices_for_attention_are_the_fastest_both_ways() -> None:
    def pair(case: str, tokens: int, triton: Any, flash: Any, cudnn: Any) -> list[dict[str, Any]]:
        made = row(eager=9.0, flash=flash, cudnn=cudnn, triton=triton, ours=1.0, again=1.0)
        facts = {"heads": 6, "head_size": 64, "tokens": tokens}
        about = {"op": "attention", "case": case, "facts": facts}
        return [{**made, **about, "direction": d} for d in ("forward", "backward")]

    rows = [*pair("a", 1024, 1.5, 1.25, 1.0), *pair("b", 64, 0.5, 1.0, "none"), row(ours=1.0)]
    rows += [{**made, "layout": "NCHW"} for made in pair("a", 1024, 0.1, 1.0, 1.0)]
    text = as_choices(rows, "NVIDIA H100 80GB HBM3")
    assert eval(f"{{{text}\n}}") == {
        ("H100", 1024, 64, "bfloat16"): "sdpa_cudnn",
        ("H100", 64, 64, "bfloat16"): "triton",
    }
    assert "sdpa_cudnn 2, sdpa_flash 2.5, triton 3" in text
    assert as_choices(rows, "NVIDIA H200").startswith('    ("H200"')
