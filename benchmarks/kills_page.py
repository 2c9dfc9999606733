"""The result file of `benchmarks.kills`, and its table in docs/reliability.md."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.demo import machine

__all__ = ["begun", "kills_part"]

MOMENTS = (
    "in the start",
    "before the first checkpoint",
    "in a checkpoint",
    "between checkpoints",
    "after the last checkpoint",
)


def begun(out: Path, seed: int) -> dict[str, Any]:
    """What an earlier call with this seed has done already; what failed is done again."""
    if out.is_file():
        found: dict[str, Any] = json.loads(out.read_text())
        if found["seed"] == seed:
            kept = {n: row for n, row in found["kills"].items() if not row["problem"]}
            return found | {"kills": kept}
    return {"machine": machine(), "seed": seed, "kills": {}}


def kills_part(result: Mapping[str, Any]) -> str:
    """How many kills hit what, by processes and stage, and how many runs ended as if none had."""
    about, rows = result["machine"], list(result["kills"].values())
    same = sum(not row["problem"] for row in rows)
    others = [
        row for row in rows if len(row.get("killed", "")) < row["ranks"] and row.get("killed")
    ]
    alone = sum(row["others_ended"] for row in others)
    lines = [
        f"**{same} of {len(rows)}** killed runs ended bit-identical to the unbroken one; "
        f"{about['cpu']}, {about['cores']} cores, torch {about['torch']}, seed "
        f"{result['seed']}, from `benchmarks/results/kills.json`. Of two processes, one was killed "
        f"{len(others)} times; the other ended by itself within a minute {alone} times.",
        "",
        f"| processes | ZeRO | {' | '.join(MOMENTS)} | bit-identical |",
        "|---" * (len(MOMENTS) + 3) + "|",
    ]
    cases = {(row["ranks"], row["stage"]) for row in rows}
    for ranks, stage in sorted(
        cases, key=lambda case: (case[0], -1 if case[1] is None else case[1])
    ):
        group = [row for row in rows if (row["ranks"], row["stage"]) == (ranks, stage)]
        counts = Counter(row.get("moment") for row in group)
        cells = [ranks, "plain PyTorch" if stage is None else stage]
        cells += [counts[moment] or "" for moment in MOMENTS]
        cells.append(f"{sum(not row['problem'] for row in group)} of {len(group)}")
        lines.append(f"| {' | '.join(map(str, cells))} |")
    return "\n".join(lines)
