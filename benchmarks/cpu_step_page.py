"""The table of `benchmarks.cpu_step`: a step a line, both columns, and the floor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["cpu_step_part"]

COLUMNS = ("published", "ours")


def _summary(recipe: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, dict[str, float]], float]]:
    """Name, columns and operations of a step; R1's share of an iteration is one in `interval`."""
    units = recipe["units"]
    plain, r1 = units["iteration"], units["iteration with R1"]
    share = 1 / recipe["r1_interval"]
    both = {
        column: {
            key: plain[column][key] + share * (r1[column][key] - plain[column][key])
            for key in ("cpu_ms", "wall_ms")
        }
        | {"peak_bytes": max(plain[column]["peak_bytes"], r1[column]["peak_bytes"])}
        for column in COLUMNS
    }
    operations = plain["operations"] + share * (r1["operations"] - plain["operations"])
    yield "fine-tuning iteration", both, operations
    for name in ("pre-training step", "sampling"):
        yield name, {column: units[name][column] for column in COLUMNS}, units[name]["operations"]


def cpu_step_part(result: Mapping[str, Any], name: str) -> str:
    """The page's table of the result file NAME.json: a step a line."""
    about = result["machine"]
    dtype = result["precision"]
    rate = result["rates"][dtype]
    lines = [
        f"{about['cpu']}, one thread, torch {about['torch']}, load {about['load']}, `auto` is "
        f"{dtype} here, from `benchmarks/results/{name}.json`; CPU seconds an iteration of 64 "
        f"images (sampling: {result['evaluations']} evaluations of 64 images):",
        "",
        "| recipe | step | published, ms | ours, ms | CPU time | wall time | peak memory, MB "
        "| floor, ms | of it |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for trained, recipe in result["recipes"].items():
        for step, columns, operations in _summary(recipe):
            theirs, ours = (columns[column] for column in COLUMNS)
            floor = 1e3 * operations / rate
            cells = [
                f"`{trained}`",
                step,
                f"{theirs['cpu_ms']:.0f}",
                f"{ours['cpu_ms']:.0f}",
                f"**{theirs['cpu_ms'] / ours['cpu_ms']:.2f}x**",
                f"{theirs['wall_ms'] / ours['wall_ms']:.2f}x",
                f"{theirs['peak_bytes'] / 1e6:.0f} -> {ours['peak_bytes'] / 1e6:.0f}",
                f"{floor:.0f}",
                f"{floor / ours['cpu_ms']:.0%}",
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)
