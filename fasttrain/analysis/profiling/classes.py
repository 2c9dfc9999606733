"""Time, bytes and operations by class of operator: one run counted, one profiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.profiler import record_function

from fasttrain.analysis.profiling.meter import Meter
from fasttrain.analysis.profiling.operators import CLASSES, Cost, OperatorCount, class_of

__all__ = ["by_class"]


def by_class(
    work: Callable[[], Any],
    meter: Meter,
    rates: Mapping[str, Mapping[str, Any]],
    trace: Path | None = None,
) -> dict[str, Any]:
    """Total cost of `work`, and `rows` by class; it runs twice. trace: the Chrome trace of the
    profiled run is written there."""
    with OperatorCount() as count:
        work()
    meter.wait()
    with meter.profiler() as profiler:
        with record_function("iteration"):
            work()
        meter.wait()
    if trace is not None:
        profiler.export_chrome_trace(str(trace))
    times: dict[str, float] = {}
    for name, own in meter.own_times(profiler, count.operators).items():
        times[class_of(name)] = times.get(class_of(name), 0.0) + own
    costs, total_ms = count.by_class(), sum(times.values())
    rows = []
    for kind in CLASSES:
        time_ms, cost = times.get(kind, 0.0), costs.get(kind, Cost())
        if time_ms or cost.calls:
            row = {"class": kind, "time_ms": time_ms, "share": time_ms / total_ms, **asdict(cost)}
            rows.append(row | _achieved(time_ms, cost, rates))
    return {"time_ms": total_ms, **asdict(count.total()), "rows": rows}


def _achieved(
    time_ms: float, cost: Cost, rates: Mapping[str, Mapping[str, Any]]
) -> dict[str, float | None]:
    """Bytes/s and FLOP/s from counts and time, and as fractions of the ceilings."""
    achieved: dict[str, float | None] = {}
    for name, amount, ceiling in (("bytes", cost.bytes, "copy"), ("flops", cost.flops, "matrix")):
        rate = amount / time_ms * 1e3 if time_ms and amount else None
        share = None if rate is None else rate / rates[ceiling]["per_second"]
        achieved |= {f"{name}_per_second": rate, f"of_{ceiling}": share}
    return achieved
