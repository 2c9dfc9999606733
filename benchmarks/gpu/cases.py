"""All cases in order of value, and their rows within a budget."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from benchmarks.gpu.attention import attention_cases
from benchmarks.gpu.case import OURS, Case
from benchmarks.gpu.norms import norm_cases
from benchmarks.gpu.others import ema_case, normal_cases, resample_cases, residual_cases
from benchmarks.gpu.parts import Budget
from benchmarks.gpu.timing import DeviceLost, describe

__all__ = ["UNITS", "all_cases", "of_check", "run_cases"]

FIRST_CASE = 20.0
"""Seconds that a case takes until one is known, most of it compiling."""
UNITS: dict[str, Any] = {name: {"per_second": 1.0} for name in ("copy", "matrix")}
"""Rates where none is measured yet and none is asked for."""


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
    needs: float | None = None,
) -> Iterator[tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Rows of each case, or its name among those left out and why: no case is dropped silently.

    A case starts when the slowest of its op so far (or `needs` seconds) would still leave
    `reserve`.
    """
    slowest: dict[str, float] = {}
    lost = ""

    def left_out(case: Case, why: str, failed: bool) -> Any:
        print(f"left out: {case.title}: {why}", flush=True)
        entry = {"op": case.op, "case": case.name, "layout": case.layout, "tags": list(case.tags)}
        return [], [{**entry, "why": why[:300], "failed": failed}]

    for case in cases:
        needed = slowest.get(case.op, max(slowest.values(), default=FIRST_CASE))
        needed = needed if needs is None else needs
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


def of_check(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a row says of right and wrong: errors of ours against float64."""
    about = ("op", "case", "layout", "direction", "failed", "wrong")
    return {key: row[key] for key in about} | {"errors": row["errors"].get(OURS, {})}
