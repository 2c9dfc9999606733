"""Batch norm groups over several processes: losses and gradients of a fine-tuning of the digits on
2, 4 and 8 of them, against one process.

    python -m benchmarks.spanning      # benchmarks/results/spanning.json, then benchmarks.page

Batch 32 in groups of 16 images: two processes have a whole group each, of four two share one, of
eight four. Every run begins with the same model and sees the same images; float32, gloo, DeepSpeed.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.demo import machine
from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start
from fasttrain.training.pretrain import pretrain
from fasttrain_data import convert
from tests.runs.conftest import EVALUATE
from tests.runs.processes import NUMBERS, lines, run_on
from tests.runs.test_deepspeed import SMOOTH
from tests.tiny import DISCRIMINATOR, FLOAT32, NETWORK

__all__ = ["spanning_part"]

RESULTS = Path(__file__).parent / "results" / "spanning.json"
BATCH, GROUP, ITERATIONS = 32, 16, 10
WORLDS, STAGES = (2, 4, 8), (1, 2)
R1 = {"exact": "r1={gamma: 1e-3, interval: 2}", "approximated": "r1={kind: approximated}"}


def overrides(folder: Path, r1: str, group: int = GROUP) -> list[str]:
    return [
        f"data.path={folder / 'digits'}",
        f"init={folder / 'digits-edm'}",
        *NETWORK,
        *SMOOTH,
        EVALUATE,
        R1[r1],
        f"batch={BATCH}",
        f"images={BATCH * ITERATIONS}",
        f"discriminator.norm_group={group}",
        "discriminator.class_embedding=random",
        *DISCRIMINATOR,
        *FLOAT32,
        f"report_every={BATCH}",
        "checkpoint.every=100000",
        "sample.count=2",
    ]


def differences(run: Path, oracle: Path) -> dict[str, list[float]]:
    """Of each number: how far it is from one process's, relative, where it comes first and at
    most over the iterations."""
    found: dict[str, list[float]] = {}
    for mine, theirs in zip(lines(run), lines(oracle), strict=True):
        for name, value in theirs.items():
            away = abs(mine[name] / value - 1)
            first, most = found.get(name, (away, 0.0))
            found[name] = [first, max(most, away)]
    return found


def measured(folder: Path) -> list[dict[str, Any]]:
    """A row for each run."""
    convert("digits", folder / "digits")
    changes = [f"run={folder / 'digits-edm'}", f"data.path={folder / 'digits'}", "images=6400"]
    changes += ["ema.half_life=500", *NETWORK, *FLOAT32[:1], EVALUATE]
    pretrain(load_settings("digits-edm", changes, PretrainSettings), start())
    rows: list[dict[str, Any]] = [
        {"processes": world, "zero": stage, "r1": r1, "group": GROUP}
        for world in WORLDS
        for stage in STAGES
        for r1 in R1
    ]
    # What it would be if each of four processes took its own eight images for a group.
    rows += [{"processes": 1, "zero": 0, "r1": r1, "group": GROUP // 2} for r1 in R1]
    names = ["-".join(str(value) for value in row.values()) for row in rows]
    cells: list[tuple[int, Sequence[str]]] = [
        (1, [*overrides(folder, r1), f"run={folder / r1}"]) for r1 in R1
    ]
    for row, name in zip(rows, names, strict=True):
        more = [f"run={folder / name}", f"engine.zero_stage={row['zero']}"]
        cells.append((row["processes"], [*overrides(folder, row["r1"], row["group"]), *more]))
    run_on(cells, folder)
    return [
        row | {"differences": differences(folder / name, folder / row["r1"])}
        for row, name in zip(rows, names, strict=True)
    ]


TITLES = {
    "loss/generator": "loss of the generator",
    "loss/discriminator": "of the discriminator",
    "loss/r1": "R1",
    "gradient/generator": "gradient of the generator",
    "gradient/discriminator": "of the discriminator",
    "gradient/r1": "of R1",
}


def spanning_part(result: Mapping[str, Any]) -> str:
    """The table of docs/multi-node.md."""
    about = result["machine"]
    assert TITLES.keys() == NUMBERS.keys()
    batch, group = result["batch"], result["group"]
    head = ["processes", "a group is on", "ZeRO", "R1", *TITLES.values()]
    lines_ = [_row(head), _row(["---"] * len(head))]
    for row in result["rows"]:
        spread = max(1, group * row["processes"] // batch)
        own = row["group"] != group
        cells = [
            f"{row['processes']}, groups of {row['group']}" if own else str(row["processes"]),
            "1 process" if spread == 1 else f"{spread} processes",
            "-" if own else str(row["zero"]),
            row["r1"],
        ]
        for name in TITLES:
            values = row["differences"].get(name)
            cells.append("-" if values is None else f"{values[0]:.0e}, {values[1]:.0e}")
        lines_.append(_row(cells))
    return (
        f"Digits, batch {batch}, batch norm over {group} images, {result['iterations']} iterations "
        f"in float32 under DeepSpeed with gloo on {about['cpu']}, torch {about['torch']}, from "
        "`benchmarks/results/spanning.json`. How far each number is from that of one process, "
        "relative: the first time, and at most.\n\n" + "\n".join(lines_)
    )


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        rows = measured(Path(folder))
    result = {
        "machine": machine(),
        "batch": BATCH,
        "group": GROUP,
        "iterations": ITERATIONS,
        "rows": rows,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print(spanning_part(result))


if __name__ == "__main__":
    main()
