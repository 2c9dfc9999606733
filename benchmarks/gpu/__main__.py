"""The whole benchmark in one command: `bash benchmarks/gpu.sh`, or, as a rehearsal without a GPU,

    python -m benchmarks.gpu --device cpu --quick --out /tmp/rehearsal.json

Tests, rates, ops, then the generator and the step, within `--budget` seconds: each part has a share
and what does not fit is named in `left_out`. The result file is rewritten after every row, so a
run that is cut short leaves what it had, with `complete` false.

Exit status 1: a test failed, a result is wrong, or a part of ours could not run. A bar that is
missed or a row that is lost is a result, not a failure: it stands in the file and in the table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.attention import attention_cases
from benchmarks.gpu.bars import acceptance
from benchmarks.gpu.case import Case
from benchmarks.gpu.norms import norm_cases
from benchmarks.gpu.others import ema_case, normal_cases, resample_cases, residual_cases
from benchmarks.gpu.parts import (
    Budget,
    discriminator,
    kernel_tests,
    machine,
    profile,
    slug,
)
from benchmarks.gpu.rows import rows_of
from benchmarks.gpu.table import as_choices, as_markdown
from benchmarks.gpu.timing import Clock, DeviceLost, describe
from fasttrain.analysis.profiling.meter import Meter
from fasttrain_kernels import dispatch

RESULTS = Path(__file__).parents[1] / "results"
RECIPE = "imagenet64-d2o-f"
REHEARSED_RATES = (1 << 20, 128)
PARTS = ("tests", "ops", "discriminator", "profile")

# Seconds: at most for the tests, kept for the profile, and what a case takes until one is known
# (most of it compiling).
TESTS_SHARE, PROFILE_SHARE, FIRST_CASE = 150.0, 140.0, 20.0
DISCRIMINATOR_SHARE = 90.0
# The least seconds for a profile, and with the column of torch.compile.
LEAST_PROFILE, COMPILED_PROFILE = 20.0, 270.0


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    budget = Budget(options.budget)
    device = torch.device(options.device)
    out = options.out or RESULTS / f"{slug(torch.cuda.get_device_name(device))}.json"
    result: dict[str, Any] = {
        "rehearsal": device.type != "cuda" or options.quick,
        "complete": False,
        "machine": machine(device),
        "budget_s": options.budget,
        "compile_backend": options.backend,
        "tests": {"left_out": "not asked for"},
        "rates": {},
        "rows": [],
        "left_out": [],
        "discriminator": {"left_out": "not asked for"},
        "profile": {"left_out": "not asked for"},
    }

    def save() -> None:
        measured = (result["rows"], result["left_out"], result["profile"].get("profile"))
        result["acceptance"] = acceptance(*measured)
        result["spent_s"] = round(budget.spent(), 1)
        _write(result, out)

    with tempfile.TemporaryDirectory() as folder:
        if "tests" in options.parts:
            limit = min(TESTS_SHARE, budget.left())
            result["tests"] = kernel_tests(limit, Path(folder) / "tests.txt")
            print(f"tests: {result['tests']['result']}", flush=True)
            save()
        _measure(result, options, device, budget, save)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # the profile's process needs the memory
        if "discriminator" in options.parts:
            result["discriminator"] = {"left_out": "no budget was left"}
            left = budget.left() - (LEAST_PROFILE if "profile" in options.parts else 0.0)
            if left > LEAST_PROFILE:
                result["discriminator"] = discriminator(
                    options.device,
                    min(left, DISCRIMINATOR_SHARE),
                    Path(folder) / "discriminator",
                    compiled=left > COMPILED_PROFILE,
                )
                save()
        if "profile" in options.parts:
            result["profile"] = {"left_out": "no budget was left"}
            if budget.left() > LEAST_PROFILE:
                place = Path(folder) / "profile"
                left, compiled = budget.left(), budget.left() > COMPILED_PROFILE
                result["profile"] = profile(
                    RECIPE, options.device, left, place, compiled=compiled and device.type == "cuda"
                )
    result["complete"] = True
    save()
    print(out.with_suffix(".md").read_text())
    choices = as_choices(result["rows"], result["machine"]["gpu"] or "CPU")
    print(f"Entries of MEASURED in kernels/fasttrain_kernels/attention.py:\n{choices}\n")
    print(f"written: {out} and {out.with_suffix('.md')}")
    problems = list(broken(result))
    print("\n".join(f"BROKEN: {problem}" for problem in problems))
    return 1 if problems else 0


def _measure(
    result: dict[str, Any],
    options: argparse.Namespace,
    device: torch.device,
    budget: Budget,
    save: Callable[[], None],
) -> None:
    """The rates, then the ops, into `result`."""
    clock = Clock(device)
    sizes = REHEARSED_RATES if options.quick else None
    rates = result["rates"] = Meter(device).rates(torch.bfloat16, sizes)
    print(f"rates: {json.dumps(rates)}", flush=True)
    if "ops" not in options.parts:
        return
    effort: Any = {"seconds": 0.02, "least": 3} if options.quick else {"seconds": 1.0}

    def run(case: Case) -> list[dict[str, Any]]:
        return rows_of(case, clock, device, rates=rates, backend=options.backend, **effort)

    cases = [case for case in all_cases(options.quick) if options.only in (None, case.op)]
    shares = {"profile": PROFILE_SHARE, "discriminator": DISCRIMINATOR_SHARE}
    reserve = sum(share for part, share in shares.items() if part in options.parts)
    for rows, left_out in run_cases(cases, run, budget, reserve):
        result["rows"] += rows
        result["left_out"] += left_out
        save()


def all_cases(quick: bool) -> Iterator[Case]:
    """Most important first: what the bars ask for, then one of each op, then the rest."""
    norms = list(norm_cases(quick=quick))
    others = [list(f(quick=quick)) for f in (residual_cases, resample_cases, normal_cases)]
    yield from (case for case in norms if "adm" in case.tags and case.layout == "NHWC")
    yield from attention_cases(quick=quick)
    yield from (cases[0] for cases in others)
    yield ema_case(quick=quick)
    yield from (case for case in norms if not ("adm" in case.tags and case.layout == "NHWC"))
    for cases in others:
        yield from cases[1:]


def run_cases(
    cases: Iterable[Case],
    run: Callable[[Case], list[dict[str, Any]]],
    budget: Budget,
    reserve: float,
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Rows of each case, or its name among those left out and why: no case is dropped silently.

    A case starts when the slowest of its op so far would still leave `reserve` seconds.
    """
    slowest: dict[str, float] = {}
    lost = ""

    def left_out(case: Case, why: str, failed: bool) -> Any:
        print(f"left out: {case.title}: {why}", flush=True)
        entry = {"op": case.op, "case": case.name, "layout": case.layout, "tags": list(case.tags)}
        return [], [{**entry, "why": why[:300], "failed": failed}]

    for case in cases:
        needed = slowest.get(case.op, max(slowest.values(), default=FIRST_CASE))
        if lost:
            yield left_out(case, lost, failed=True)
        elif budget.left() - reserve < needed:
            yield left_out(case, f"the budget of {budget.seconds:.0f} s was spent", failed=False)
        else:
            start = budget.spent()
            try:
                rows = run(case)
            except DeviceLost as error:
                lost = f"the GPU stopped at {case.title}: {error}"
                yield left_out(case, lost, failed=True)
            except Exception as error:
                yield left_out(case, describe(error), failed=True)
            else:
                took = budget.spent() - start
                slowest[case.op] = max(took, slowest.get(case.op, 0.0))
                print(f"{case.title}: {took:.1f} s", flush=True)
                yield rows, []


def broken(result: dict[str, Any]) -> Iterator[str]:
    """What makes the exit status 1."""
    if result["tests"].get("passed") is False:
        yield f"tests: {result['tests']['result']}"
    for row in result["rows"]:
        name = f"{row['op']} {row['case']} {row['layout']} {row['direction']}"
        if row["failed"]:
            yield f"{name}: {row['failed']}"
        if row["wrong"]:
            yield f"{name}: wrong {', '.join(row['wrong'])}"
    for left in result["left_out"]:
        if left["failed"]:
            yield f"{left['op']} {left['case']} {left['layout']}: {left['why']}"
    for part in ("discriminator", "profile"):
        if "error" in result.get(part, {}):
            yield f"{part}: {result[part]['error']}"


def _write(result: dict[str, Any], out: Path) -> None:
    """The file, then its table, each whole or not at all; copies in $OUT, where that is set."""
    out.parent.mkdir(parents=True, exist_ok=True)
    rounded = _rounded(result)  # the table too is made of what the file holds
    _replace(out, json.dumps(rounded, indent=1, allow_nan=False))
    _replace(out.with_suffix(".md"), as_markdown(rounded))


def _replace(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(text + "\n")
    temporary.replace(path)
    if os.environ.get("OUT"):
        shutil.copy(path, os.environ["OUT"])


def _rounded(value: Any) -> Any:
    """Six digits of every number that is not a count; what JSON has no number for, as text."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else str(value)
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, (list, tuple)) else value


def _options(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu")
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--quick", action="store_true", help="tiny shapes: a rehearsal")
    parser.add_argument("--out", type=Path, help="the result file; needed for a rehearsal")
    parser.add_argument("--budget", type=float, default=float(os.environ.get("BUDGET", 540)))
    parser.add_argument("--parts", help=f"of {','.join(PARTS)}; on a CPU ops alone by default")
    parser.add_argument("--only", help="one op")
    parser.add_argument("--backend", help="of torch.compile; inductor, on a CPU aot_eager")
    options = parser.parse_args(arguments)
    cuda = options.device == "cuda"
    options.parts = (options.parts or (",".join(PARTS) if cuda else "ops")).split(",")
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"--parts knows {', '.join(PARTS)}, not {', '.join(sorted(unknown))}")
    options.backend = options.backend or ("inductor" if cuda else "aot_eager")
    if cuda and not torch.cuda.is_available():
        parser.error("no CUDA device: run this on a GPU machine, or rehearse with --device cpu")
    if cuda and dispatch.INTERPRETED:
        parser.error("TRITON_INTERPRET is on: the kernels would not be compiled; set it to 0")
    if not cuda and not options.quick:
        parser.error("--device cpu is a rehearsal of tiny shapes: add --quick")
    if options.quick and (options.out is None or RESULTS in options.out.resolve().parents):
        parser.error(f"a rehearsal needs --out FILE, not in {RESULTS}")
    return options


if __name__ == "__main__":
    sys.exit(main())
