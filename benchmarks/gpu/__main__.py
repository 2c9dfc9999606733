"""The whole benchmark in one command: `bash benchmarks/gpu.sh`, or, as a rehearsal without a GPU,

    python -m benchmarks.gpu --device cpu --quick --out /tmp/rehearsal.json

The parts of `session.SHARES` within `--budget` seconds, in order of value and each with a limit of
its own. The result file is rewritten after every part and every row; the same command again does
what is not done, `--parts NAME,NAME` these, and operators that have rows are not measured twice.

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
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.bars import acceptance
from benchmarks.gpu.case import Case
from benchmarks.gpu.cases import UNITS, all_cases, of_check, run_cases
from benchmarks.gpu.parts import Budget, discriminator, kernel_tests, machine, profile, runs, slug
from benchmarks.gpu.rows import rows_of
from benchmarks.gpu.session import PARTS, earlier, fresh, pending, share_of
from benchmarks.gpu.table import as_choices, as_markdown, broken
from benchmarks.gpu.timing import Clock
from fasttrain.analysis.profiling.meter import Meter
from fasttrain_kernels import dispatch

RESULTS = Path(__file__).parents[1] / "results"
RECIPE = "imagenet64-d2o-f"
REHEARSED_RATES = (1 << 20, 128)
LEAST = {"check": 5.0, "rates": 3.0, "ops": 5.0, "tests": 5.0}
"""Seconds with which a part starts; others 20."""
COMPILED_PROFILE = 150.0
"""Seconds from which torch.compile is a column of the profile."""


class Session:
    """One call: what it measures, in which time, and where it is written."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.budget = options, Budget(options.budget)
        self.device = torch.device(options.device)
        self.out = options.out or RESULTS / f"{slug(torch.cuda.get_device_name(self.device))}.json"
        rehearsal = self.device.type != "cuda" or options.quick
        new = fresh(machine(self.device), rehearsal=rehearsal, backend=options.backend)
        old = earlier(self.out, new)
        self.result = new if old is None else old
        if old:
            print(f"going on with {self.out}: {', '.join(old['done']) or 'nothing'} done")

    def save(self) -> None:
        result = self.result
        measured = (result["rows"], result["left_out"], result["profile"].get("profile"))
        result["acceptance"] = acceptance(*measured)
        _write(result, self.out)

    def run(self, asked: list[str] | None) -> None:
        wanted = pending(self.result, asked)
        with tempfile.TemporaryDirectory() as folder:
            for part in wanted:
                limit = min(share_of(part, self.budget.seconds), self.budget.left())
                if limit < LEAST.get(part, 20.0):
                    print(f"left out: {part}: {limit:.0f} s are left", flush=True)
                    continue
                self.result["done"].pop(part, None)
                start = self.budget.spent()
                whole = getattr(self, part)(limit, Path(folder) / part)
                took = round(self.budget.spent() - start, 1)
                if whole:
                    self.result["done"][part] = took
                print(f"{part}: {'done' if whole else 'not done'}, {took} s", flush=True)
                self.save()
        self.result["complete"] = not [p for p in asked or PARTS if p not in self.result["done"]]
        self.save()

    def check(self, limit: float, folder: Path) -> bool:
        """Every kernel once on small shapes against float64, before anything is timed."""
        clock, result = Clock(self.device), self.result
        result["check"] = []
        run = partial(
            rows_of, clock=clock, device=self.device, rates=UNITS, backend="eager",
            seconds=0.0, least=1,
        )  # fmt: skip
        whole = True
        for rows, left_out in run_cases(all_cases(True), run, Budget(limit), 0.0, needs=2.0):
            result["check"] += [*map(of_check, rows), *left_out]
            whole = whole and all(entry["failed"] for entry in left_out)
            self.save()
        return whole

    def rates(self, limit: float, folder: Path) -> bool:
        sizes = REHEARSED_RATES if self.options.quick else None
        self.result["rates"] = Meter(self.device).rates(torch.bfloat16, sizes)
        print(f"rates: {json.dumps(self.result['rates'])}", flush=True)
        return True

    def ops(self, limit: float, folder: Path) -> bool:
        """Cases without rows, those first that the bars ask for."""
        result, options = self.result, self.options
        if not result["rates"]:
            self.rates(limit, folder)
        effort: Any = {"seconds": 0.02, "least": 3} if options.quick else {"seconds": 1.0}
        run = partial(
            rows_of, clock=Clock(self.device), device=self.device, rates=result["rates"],
            backend=options.backend, **effort,
        )  # fmt: skip
        there = {(row["op"], row["case"], row["layout"]) for row in result["rows"]}
        cases: list[Case] = [
            case
            for case in all_cases(options.quick)
            if options.only in (None, case.op) and (case.op, case.name, case.layout) not in there
        ]
        result["left_out"] = []
        for rows, left_out in run_cases(cases, run, Budget(limit), 0.0):
            result["rows"] += rows
            result["left_out"] += left_out
            self.save()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()  # the next parts' processes need the memory
        return all(entry["failed"] for entry in result["left_out"])

    def _part(self, name: str, function: Callable[..., dict[str, Any]]) -> bool:
        self.result[name] = function()
        return not self.result[name].get("timed_out")

    def profile(self, limit: float, folder: Path) -> bool:
        compiled = self.device.type == "cuda" and limit >= COMPILED_PROFILE
        device = self.options.device
        return self._part(
            "profile", lambda: profile(RECIPE, device, limit, folder, compiled=compiled)
        )

    def discriminator(self, limit: float, folder: Path) -> bool:
        device = self.options.device
        return self._part(
            "discriminator", lambda: discriminator(device, limit, folder, compiled=False)
        )

    def tests(self, limit: float, folder: Path) -> bool:
        folder.mkdir()
        return self._part("tests", lambda: kernel_tests(limit, folder / "tests.txt"))

    def fd(self, limit: float, folder: Path) -> bool:
        """A short training beside the same in float32 on plain operators."""
        device = self.options.device
        return self._part("fd", lambda: runs("pretrain,fd", device, limit, folder))

    def runs(self, limit: float, folder: Path) -> bool:
        """Trainings that are killed and resumed."""
        device = self.options.device
        return self._part("runs", lambda: runs("pretrain,one,look,two", device, limit, folder))


def main(arguments: list[str] | None = None) -> int:
    options = _options(arguments)
    session = Session(options)
    session.run(options.parts)
    result, out = session.result, session.out
    print(out.with_suffix(".md").read_text())
    choices = as_choices(result["rows"], result["machine"]["gpu"] or "CPU")
    print(f"Entries of MEASURED in kernels/fasttrain_kernels/attention.py:\n{choices}\n")
    print(f"written: {out} and {out.with_suffix('.md')}")
    problems = list(broken(result))
    print("\n".join(f"BROKEN: {problem}" for problem in problems))
    return 1 if problems else 0


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
    parser.add_argument("--parts", help=f"of {','.join(PARTS)}; default: what is not done")
    parser.add_argument("--only", help="one op")
    parser.add_argument("--backend", help="of torch.compile; inductor, on a CPU aot_eager")
    options = parser.parse_args(arguments)
    cuda = options.device == "cuda"
    if options.parts is None and not cuda:
        options.parts = "rates,ops"
    options.parts = options.parts.split(",") if options.parts else None
    unknown = set(options.parts or ()) - set(PARTS)
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
