"""The parts of docs/performance.md that follow from the model and from counts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fasttrain.analysis.speed.rates import GPUS

__all__ = ["model_parts"]


def model_parts(results: Path) -> dict[str, Callable[[], str]]:
    def read(name: str) -> Any:
        return json.loads((results / f"{name}.json").read_text())

    return {
        "model": lambda: model_part(read("model")),
        "kernel-counts": lambda: counts_part(read("kernel-counts")),
        "kernel-calls": lambda: calls_part(read("kernel-calls")),
    }


def model_part(result: Mapping[str, Any]) -> str:
    lines = ["From `benchmarks/results/model.json`; milliseconds, counted and not measured:", ""]
    for recipe, found in result.items():
        names = [GPUS[name].name for name in found["gpus"]]
        lines += [
            f"`{recipe}`, {found['images']} images a GPU:",
            "",
            f"| phase | launches | {' | '.join(f'{name}: floor, expected' for name in names)} |",
            f"|---|---|{'---|' * len(names)}",
        ]
        gpus = list(found["gpus"].values())
        for phase, first in gpus[0]["phases"].items():
            often = "" if first["times"] == 1 else f", {first['times']:.3g} times"
            rows = [gpu["phases"][phase] for gpu in gpus]
            lines.append(_row(phase + often, first["launches"], rows))
        totals = [gpu["iteration"] for gpu in gpus]
        lines.append(_row("**iteration**", round(totals[0]["launches"]), totals))
        for column in ("library", "eager"):
            for phase in gpus[0]["generator of"][column]:
                rows = [gpu["generator of"][column][phase] for gpu in gpus]
                lines.append(_row(f"{column}: {phase}", rows[0]["launches"], rows))
        lines.append("")
    return "\n".join(lines).rstrip()


def _row(name: str, launches: int, costs: Sequence[Mapping[str, Any]]) -> str:
    cells = [f"{1e3 * cost['floor']:.1f}, {1e3 * cost['expected']:.1f}" for cost in costs]
    return f"| {name} | {launches} | {' | '.join(cells)} |"


def counts_part(result: Mapping[str, Any]) -> str:
    lines = [
        "From `benchmarks/results/kernel-counts.json`: instructions that one warp of a program "
        f"issues, {result['arch']}:",
        "",
        "| kernel | variant | before | after | change |",
        "|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        change = row["after"] / row["before"] - 1
        lines.append(
            f"| `{row['kernel']}` | {row['variant']} | {row['before']} | {row['after']} | "
            f"{change:+.0%} |"
        )
    return "\n".join(lines)


def calls_part(result: Mapping[str, Any]) -> str:
    lines = [
        f"From `benchmarks/results/kernel-calls.json`, torch {result['torch']}; microseconds of a "
        "CPU for a call, its kernels left out:",
        "",
        "| call | `custom_op` | `autograd.Function` |",
        "|---|---|---|",
    ]
    for name, value in result["autograd.Function"].items():
        lines.append(f"| {name} | {result['custom_op'][name]} | {value} |")
    return "\n".join(lines)
