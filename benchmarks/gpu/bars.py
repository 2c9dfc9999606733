"""The acceptance bars, from the rows and the profile alone.

A bar passes when everything it speaks of was measured and holds, fails when something measured does
not hold, and is `None` (not shown) when what was measured holds but some of it is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.gpu.attention import CUDNN, FLASH
from benchmarks.gpu.case import COMPILE, EAGER, OURS

__all__ = ["COPY_SHARE", "MEMORY_RATIO", "SPEED_UP", "acceptance", "both_ways", "peak_bytes"]

COPY_SHARE = 0.75
SPEED_UP = 2.0
MEMORY_RATIO = 0.5
BATCH = 128

Row = Mapping[str, Any]


def acceptance(
    rows: Sequence[Row], left_out: Sequence[Row], profile: Mapping[str, Any] | None
) -> list[dict[str, Any]]:
    """One entry a bar: `bar`, `passed` (True, False, None), `measured`."""

    def of(op: str, tag: str = "") -> tuple[list[Row], list[str]]:
        there, missing = (
            [entry for entry in entries if entry["op"] == op and (not tag or tag in entry["tags"])]
            for entries in (rows, left_out)
        )
        return there, [f"{entry['case']} {entry['layout']}" for entry in missing]

    return [
        _bandwidth(*of("group_norm", "adm")),
        _against_compile(*of("group_norm")),
        _against_sdpa(*of("attention")),
        *_generator(profile),
    ]


class _Tally:
    """What a bar speaks of: (name, share of the bar or ratio) pairs that hold or do not."""

    def __init__(self, missing: Sequence[str] = ()) -> None:
        self.good: list[tuple[float, str]] = []
        self.bad: list[str] = []
        self.missing = list(missing)

    def add(self, holds: bool, value: float, text: str) -> None:
        if holds:
            self.good.append((value, text))
        else:
            self.bad.append(text)

    def entry(self, bar: str) -> dict[str, Any]:
        """All that is missed or missing by name; of what is met, how many and the narrowest."""
        passed = False if self.bad else None if self.missing or not self.good else True
        parts = [("missed", self.bad), ("not measured", self.missing)]
        if self.good:
            parts.append((f"met {len(self.good)} times, narrowest", [min(self.good)[1]]))
        measured = "; ".join(f"{name}: {', '.join(values)}" for name, values in parts if values)
        return {"bar": bar, "passed": passed, "measured": measured or "nothing"}


def _bandwidth(rows: Sequence[Row], missing: list[str]) -> dict[str, Any]:
    tally = _Tally(missing)
    for row in rows:
        if row["failed"]:
            tally.bad.append(f"{_name(row)} failed")
        else:
            share = row["of_copy"]
            tally.add(share >= COPY_SHARE, share, f"{_name(row)} {100 * share:.0f} %")
    return tally.entry(
        f"group_norm at the ADM shapes: at least {COPY_SHARE:.0%} of the measured copy "
        "bandwidth, forward and backward"
    )


def _against_compile(rows: Sequence[Row], missing: list[str]) -> dict[str, Any]:
    tally = _Tally(missing)
    for row in rows:
        other = row["columns"].get(COMPILE, {}).get("median_ms")
        if row["failed"]:
            tally.bad.append(f"{_name(row)} failed")
        elif other is None:
            tally.missing.append(_name(row))
        else:
            gain = other / row["columns"][OURS]["median_ms"]
            tally.add(COMPILE not in row["loss"], gain, f"{_name(row)} {gain:.2f}x")
    return tally.entry("group_norm: no shape slower than torch.compile")


def _against_sdpa(rows: Sequence[Row], missing: list[str]) -> dict[str, Any]:
    """Forward and backward together: what is chosen forward decides the backward."""
    tally = _Tally(missing)
    pairs: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        pairs.setdefault((row["case"], row["layout"]), []).append(row)
    for (case, layout), pair in pairs.items():
        title = f"{case} {layout}"
        if any(row["failed"] for row in pair):
            tally.bad.append(f"{title} failed")
            continue
        sums = {name: both_ways(pair, name) for name in (OURS, FLASH, CUDNN)}
        ours = sums.pop(OURS)
        best = min((value for value in sums.values() if value is not None), default=None)
        if ours is None or best is None:
            tally.missing.append(title)
        else:
            noise = max(row["noise"] for row in pair)
            tally.add(ours <= best * (1 + noise), best / ours, f"{title} {best / ours:.2f}x")
    return tally.entry("attention: never slower than the best SDPA, forward plus backward")


def both_ways(pair: Sequence[Row], column: str) -> float | None:
    """Milliseconds forward plus backward of a column, if it has both."""
    times = [row["columns"].get(column, {}).get("median_ms") for row in pair]
    return sum(times) if len(times) == 2 and None not in times else None


def _generator(profile: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """From `fasttrain profile`: ours against the eager column, weights and all in the memory."""
    speed, memory = _Tally(), _Tally()
    ours, eager = (_column(profile, name) for name in (OURS, EAGER))
    if profile is not None and ours and eager:
        batch, dtype = (profile["configuration"][key] for key in ("batch", "dtype"))
        if profile["shrunk"] or (batch, dtype) != (BATCH, "bfloat16"):
            for tally in (speed, memory):
                tally.missing.append(f"the published size at batch {BATCH} in bfloat16")
        else:
            _compare(profile, ours, eager, speed, memory)
    return [
        speed.entry(f"generator, forward and backward: at least {SPEED_UP:.0f}x eager"),
        memory.entry(f"generator: at most {MEMORY_RATIO:.0%} of eager's peak memory"),
    ]


def _compare(
    profile: Mapping[str, Any], ours: Any, eager: Any, speed: _Tally, memory: _Tally
) -> None:
    if OURS in profile["wrong"]:
        speed.bad.append("ours computes something else")
    gain = eager["total"]["median_ms"] / ours["total"]["median_ms"]
    speed.add(gain >= SPEED_UP, gain, f"{gain:.2f}x")
    peaks = (peak_bytes(ours), peak_bytes(eager))
    if None not in peaks:
        share = peaks[0] / peaks[1]
        memory.add(share <= MEMORY_RATIO, -share, f"{share:.2f} of eager's")


def _column(profile: Mapping[str, Any] | None, name: str) -> Any:
    return ((profile or {}).get("columns", {}).get(name) or {}).get("generator")


def peak_bytes(generator: Mapping[str, Any]) -> Any:
    """Weights and all; None where memory is not counted."""
    above = generator["peak_bytes_above_weights"]
    return None if above is None else above + generator["weight_bytes"]


def _name(row: Row) -> str:
    return f"{row['case']} {row['layout']} {row['direction']}"
