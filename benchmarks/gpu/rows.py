"""A case becomes two rows, forward and backward: errors, times, rates, registers, and the marks.

- errors: relative L2 of each result against float64, of every column, so ours stands beside eager's
  own. `wrong` names results of ours whose error exceeds the dtype's tolerance and twice eager's.
- `loss` names the columns that are faster than ours by more than the noise: what two timings of
  ours in the same turns differ by, but at least 1 % and at most 5 %.
- a column that fails holds the text of its error, and the others go on; `failed` is ours'.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.case import (
    AGAIN,
    COMPILE,
    COPY,
    EAGER,
    OURS,
    Case,
    Inputs,
    Work,
    competitors,
    each,
    random,
)
from benchmarks.gpu.launched import launched
from benchmarks.gpu.timing import Clock, Run, Times, describe, measure

__all__ = ["TOLERANCE", "relative_error", "rows_of"]

TOLERANCE = {torch.bfloat16: 1e-2, torch.float16: 2e-3, torch.float32: 1e-5}

Errors = dict[str, dict[str, float | str]]


def rows_of(
    case: Case,
    clock: Clock,
    device: torch.device,
    *,
    rates: Mapping[str, Any],
    backend: str,
    seconds: float,
    least: int = 10,
    seed: int = 0,
) -> list[dict[str, Any]]:
    """The case's rows: "forward" and, where it has gradients, "backward"."""
    torch._dynamo.reset()
    functions = {name: f for name, f in case.columns.items() if not isinstance(f, str)}
    broken = {name: f for name, f in case.columns.items() if isinstance(f, str)}
    if COMPILE in functions:
        functions[COMPILE] = torch.compile(functions[COMPILE], dynamic=False, backend=backend)

    truth = _exact(case, device, seed)
    inputs = case.inputs(device, seed)
    outputs = _shapes(case, truth, inputs)
    errors: Errors = {}
    for name, function in functions.items():
        try:
            _poison([*outputs.values(), *(inputs[key] for key in case.gradients)], device)
            got = _results(case, function, case.inputs(device, seed), seed)
            errors[name] = {key: relative_error(_part(case, got[key]), truth[key]) for key in got}
        except Exception as error:
            broken[name] = describe(error)
            clock.recover(error)
    work = case.work(inputs, outputs)
    del truth
    kernels = {} if OURS in broken else _kernels(case, functions[OURS], inputs)
    alive = {name: function for name, function in functions.items() if name not in broken}
    runs = _runs(case, alive, inputs, seed)
    runs[COPY] = _copies(work, device)
    times = measure(runs, clock, seconds=seconds, hide_launch=case.hide_launch, least=least)
    rows = []
    for direction in ("forward", "backward") if case.gradients else ("forward",):
        row = _describe(case, direction, work, inputs)
        found = times | broken
        names = [name for name in (*case.columns, AGAIN, COPY) if name in found]
        row["columns"] = {name: _cell(found[name], direction) for name in names}
        row["errors"] = _of_direction(case, errors, direction)
        row["kernels"] = kernels.get(direction, [])
        rows.append(row | judge(row, TOLERANCE[case.dtype], rates))
    return rows


def judge(row: Mapping[str, Any], tolerance: float, rates: Mapping[str, Any]) -> dict[str, Any]:
    """What follows from a row's cells: rates of ours, noise, loss, wrong, failed."""
    cells = row["columns"]
    ours = cells[OURS]
    verdict: dict[str, Any] = {"failed": ours.get("error"), "loss": [], "wrong": []}
    if verdict["failed"]:
        return verdict
    eager = row["errors"].get(EAGER, {})
    for key, value in row["errors"].get(OURS, {}).items():
        reference = eager.get(key)
        allowed = max(tolerance, 2 * reference if isinstance(reference, float) else 0.0)
        if not (isinstance(value, float) and value <= allowed):
            verdict["wrong"].append(key)
    mine = ours["median_ms"]
    again = cells.get(AGAIN, {}).get("median_ms", mine)
    noise = min(0.05, max(0.01, abs(again - mine) / mine))
    for name in competitors(cells):
        other = cells[name].get("median_ms")
        if other is not None and mine > other * (1 + noise):
            verdict["loss"].append(name)
    seconds = mine * 1e-3
    verdict |= {"noise": noise, "gb_s": row["bytes"] / seconds / 1e9}
    verdict["of_copy"] = row["bytes"] / seconds / rates["copy"]["per_second"]
    if cells.get(COPY, {}).get("median_ms"):
        verdict["of_same_size_copy"] = cells[COPY]["median_ms"] / mine
    if row["flops"]:
        verdict["tflop_s"] = row["flops"] / seconds / 1e12
        verdict["of_matrix"] = row["flops"] / seconds / rates["matrix"]["per_second"]
    return verdict


def relative_error(got: Tensor, exact: Tensor) -> float | str:
    """||got - exact|| / ||exact||, or "not finite", which is never right."""
    if got.shape != exact.shape:
        return f"shape {list(got.shape)}, not {list(exact.shape)}"
    norm = float(exact.norm())
    error = float((got.detach().double() - exact).norm()) / (norm or 1.0)
    return error if math.isfinite(error) else "not finite"


# ---------------------------------------------------------------------------------- results


def _exact(case: Case, device: torch.device, seed: int) -> dict[str, Tensor]:
    inputs = case.inputs(device, seed)
    if case.exact is not None:
        return case.exact(inputs)
    whole = len(next(iter(inputs.values())))
    inputs = {name: each(_part(case, value), Tensor.double) for name, value in inputs.items()}
    eager = case.columns[EAGER]
    assert not isinstance(eager, str)
    return _results(case, eager, inputs, seed, whole if case.checked else None)


def _part(case: Case, value: Any) -> Any:
    return value[: case.checked] if case.checked and isinstance(value, Tensor) else value


def _shapes(case: Case, truth: Mapping[str, Tensor], inputs: Inputs) -> dict[str, Tensor]:
    """The outputs for the whole batch without memory: `work` asks for their size only."""
    sizes = {}
    for name in case.outputs:
        shape = list(truth[name].shape)
        if case.checked:
            shape[0] = len(next(iter(inputs.values())))
        dtype = torch.float32 if name == "statistics" else case.dtype
        sizes[name] = torch.empty(shape, dtype=dtype, device="meta")
    return sizes


def _poison(like: Sequence[Tensor], device: torch.device) -> None:
    """Leave NaN in the memory that is handed out next: what a kernel does not write then shows."""
    held = [torch.full(t.shape, math.nan, dtype=t.dtype, device=device) for t in like]
    del held


def _results(
    case: Case, function: Callable[..., Any], inputs: Inputs, seed: int, batch: int | None = None
) -> dict[str, Tensor]:
    """Outputs by name and gradients as "d" + name. batch: of which `inputs` are the first part."""
    leaves = [inputs[name].requires_grad_() for name in case.gradients]
    returned = function(**inputs)
    values = list(returned) if isinstance(returned, (tuple, list)) else [returned]
    if len(case.outputs) == 1 and len(values) > 1:
        values = [torch.cat([value.flatten() for value in values])]
    results = {n: v.detach() for n, v in zip(case.outputs, values, strict=True)}
    if leaves:
        y = values[0]
        dy = _upstream(case, (batch or len(y), *y.shape[1:]), y.device, seed)[: len(y)]
        dy = torch.empty_like(y).copy_(dy)
        grads = torch.autograd.grad(y, leaves, dy)
        results |= {"d" + n: g for n, g in zip(case.gradients, grads, strict=True)}
    return results


def _upstream(case: Case, shape: tuple[int, ...], device: torch.device, seed: int) -> Tensor:
    return random(device, seed + 1, case.dtype)(*shape)


def _of_direction(case: Case, errors: Errors, direction: str) -> Errors:
    forward = direction == "forward"
    return {
        column: {k: v for k, v in values.items() if (k in case.outputs) == forward}
        for column, values in errors.items()
    }


# ------------------------------------------------------------------------------------ timing


def _runs(
    case: Case, functions: Mapping[str, Callable[..., Any]], inputs: Inputs, seed: int
) -> dict[str, Run]:
    leaves = [inputs[name].requires_grad_() for name in case.gradients]
    upstream: dict[Any, Tensor] = {}  # in the memory format of what a column returned

    def backward(returned: Any) -> Any:
        y = returned[0] if isinstance(returned, (tuple, list)) else returned
        if y.stride() not in upstream:
            upstream[y.stride()] = torch.empty_like(y).copy_(
                _upstream(case, tuple(y.shape), y.device, seed)
            )
        return torch.autograd.grad(y, leaves, upstream[y.stride()])

    def run(function: Callable[..., Any]) -> Run:
        return Run(lambda: function(**inputs), backward if leaves else None)

    runs = {name: run(function) for name, function in functions.items()}
    if OURS in functions:
        runs[AGAIN] = run(functions[OURS])
    return runs


def _copies(work: Work, device: torch.device) -> Run:
    most = max(work.forward_bytes, work.backward_bytes) // 2
    source = torch.randint(256, (most,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def copy(size: int) -> Any:
        return target[: size // 2].copy_(source[: size // 2])

    return Run(lambda: copy(work.forward_bytes), lambda _: copy(work.backward_bytes))


def _describe(case: Case, direction: str, work: Work, inputs: Inputs) -> dict[str, Any]:
    shapes = {name: list(v.shape) for name, v in inputs.items() if isinstance(v, Tensor)}
    forward = direction == "forward"
    return {
        "op": case.op, "case": case.name, "direction": direction, "layout": case.layout,
        "dtype": str(case.dtype).removeprefix("torch."), "tags": list(case.tags),
        "shapes": shapes, "checked_samples": case.checked,
        "launches": "hidden" if case.hide_launch else "counted",
        "bytes": work.forward_bytes if forward else work.backward_bytes,
        "flops": work.forward_flops if forward else work.backward_flops,
        **({"facts": dict(case.facts)} if case.facts else {}),
    }  # fmt: skip


def _cell(times: Times | str, direction: str) -> dict[str, Any]:
    if isinstance(times, str):
        return {"error": times}
    timing = times.forward if direction == "forward" else times.backward
    return {"error": "not timed"} if timing is None else asdict(timing)


def _kernels(
    case: Case, function: Callable[..., Any], inputs: Inputs
) -> dict[str, list[dict[str, Any]]]:
    """What our compiled kernels of either direction use, read off those that ran."""
    leaves = [inputs[name].requires_grad_() for name in case.gradients]
    with launched() as forward:
        returned = function(**inputs)
    with launched() as backward:
        if leaves:
            y = returned[0] if isinstance(returned, (tuple, list)) else returned
            torch.autograd.grad(y, leaves, torch.ones_like(y))
    return {"forward": forward, "backward": backward}
