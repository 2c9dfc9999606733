"""Pre-training with OpenMP threads that wait in different ways, alone and beside busy processes.

    python -m benchmarks.threads                      # a quarter of an hour
    python -m benchmarks.threads --busy 2 --repetitions 1

Each cell pre-trains the digits' model on 3,840 images in a process of its own, settings by turns;
`busy` processes that only count run beside it. Wall time is what a user waits; CPU time shows what
spinning costs the others. The load average beforehand tells what else the machine did.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.demo import machine
from fasttrain.system.threads import OWN, TURNS
from fasttrain_data import convert

__all__ = ["threads_part"]

RESULT = Path(__file__).parent / "results" / "threads.json"
SETTINGS: dict[str, dict[str, str]] = {
    "OpenMP's default": {"GOMP_SPINCOUNT": "300000"},
    f"GOMP_SPINCOUNT={TURNS}": {"GOMP_SPINCOUNT": str(TURNS)},
    "OMP_WAIT_POLICY=PASSIVE": {"OMP_WAIT_POLICY": "PASSIVE"},
}
IMAGES = 3840
MOST_SECONDS = 300
COUNTING = "while True: pass"


def cell(data: Path, folder: Path, variables: Mapping[str, str], threads: int) -> dict[str, Any]:
    """Wall and CPU seconds of a run; the time limit where it was not done by then."""
    environment = {name: value for name, value in os.environ.items() if name not in OWN}
    environment |= {"OMP_NUM_THREADS": str(threads), **variables}
    with tempfile.TemporaryDirectory(dir=folder) as run:
        command = [sys.executable, "-m", "fasttrain", "pretrain", "digits-edm", f"run={run}/run"]
        command += [f"data.path={data}", f"images={IMAGES}", "precision=float32"]
        command += ["sample.every=0", "evaluate.every=0", "data.workers=0"]
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        try:
            subprocess.run(
                command, env=environment, check=True, timeout=MOST_SECONDS, capture_output=True
            )
            done = True
        except subprocess.TimeoutExpired:
            done = False
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": round(wall, 1), "cpu": round(cpu, 1), "done": done}


def measured(busy: int, threads: int, repetitions: int, folder: Path) -> dict[str, Any]:
    """All settings by turns, beside `busy` other processes."""
    load = os.getloadavg()[0]
    others = [subprocess.Popen([sys.executable, "-c", COUNTING]) for _ in range(busy)]
    try:
        cells: dict[str, list[dict[str, Any]]] = {name: [] for name in SETTINGS}
        for _ in range(repetitions):
            for name, variables in SETTINGS.items():
                cells[name].append(cell(folder / "digits", folder, variables, threads))
    finally:
        for other in others:
            other.kill()
            other.wait()
    return {"busy": busy, "threads": threads, "load": round(load, 1), "cells": cells}


def threads_part(result: Mapping[str, Any]) -> str:
    """The page's table: a setting a line."""
    about = result["machine"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, torch {about['torch']}, from "
        f"`benchmarks/results/{RESULT.name}`; seconds of wall and CPU time with start, medians:",
        "",
    ]
    heads = [
        f"{row['threads']} threads, {row['busy']} busy processes, load {row['load']} before"
        for row in result["rows"]
    ]
    lines += [f"| setting | {' | '.join(heads)} |", "|---" * (len(heads) + 1) + "|"]
    for name in SETTINGS:
        times = []
        for row in result["rows"]:
            cells = row["cells"][name]
            wall, cpu = (statistics.median(c[key] for c in cells) for key in ("wall", "cpu"))
            over = "" if all(c["done"] for c in cells) else "stopped after "
            times.append(f"{over}{wall:.0f}, CPU {cpu:.0f}")
        lines.append(f"| `{name}` | {' | '.join(times)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 2])
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        convert("digits", folder / "digits")
        rows = [
            measured(busy, options.threads, options.repetitions, folder) for busy in options.busy
        ]
    options.out.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
    print(threads_part({"machine": machine(), "rows": rows}))


if __name__ == "__main__":
    main()
