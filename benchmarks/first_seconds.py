"""Seconds until the command line answers: help, mistakes and dry runs, of several trees.

    python -m benchmarks.first_seconds --out benchmarks/results/first-seconds.json \\
        before=OLDER_TREE after=.

A tree is a checkout; each command runs in a process of its own with its packages, several times, in
turns. `cpu` is the least CPU time of a run, which other work on the machine hardly changes; `wall`
is the least wall time, which it does.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.demo import machine

COMMANDS = {
    "import fasttrain": ["-c", "import fasttrain"],
    "--help": ["-m", "fasttrain", "--help"],
    "an unknown command": ["-m", "fasttrain", "finetne"],
    "an unknown recipe": ["-m", "fasttrain", "finetune", "digits-d2x"],
    "an unknown setting": ["-m", "fasttrain", "finetune", "digits-d2o-f", "image=3"],
    "--dry-run of digits-edm": ["-m", "fasttrain", "pretrain", "digits-edm", "--dry-run"],
    "--dry-run of digits-d2o-f": ["-m", "fasttrain", "finetune", "digits-d2o-f", "--dry-run"],
    "--dry-run of imagenet64-d2o-f": [
        *("-m", "fasttrain", "finetune", "imagenet64-d2o-f", "--dry-run")
    ],
}


def measure(tree: Path, words: list[str]) -> tuple[float, float]:
    """CPU and wall seconds of one process."""
    root = tree.resolve()
    path = os.pathsep.join(str(root / part) for part in ("", "kernels", "data_tools"))
    before, began = os.times(), time.perf_counter()
    subprocess.run(
        [sys.executable, *words],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        cwd=root,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=False,
    )
    wall, after = time.perf_counter() - began, os.times()
    cpu = after.children_user + after.children_system
    return cpu - before.children_user - before.children_system, wall


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trees", nargs="+", metavar="NAME=TREE")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    trees = dict(word.split("=", 1) for word in options.trees)
    rows = []
    for name, words in COMMANDS.items():
        runs: dict[str, list[tuple[float, float]]] = {tree: [] for tree in trees}
        for _ in range(options.times):
            for tree, path in trees.items():
                runs[tree].append(measure(Path(path), words))
        row: dict[str, object] = {"command": name}
        for tree, times in runs.items():
            cpu, wall = (round(min(values), 2) for values in zip(*times, strict=True))
            row[tree] = {"cpu": cpu, "wall": wall}
        print(row, flush=True)
        rows.append(row)
    result = {"machine": machine(), "load": os.getloadavg(), "rows": rows}
    options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
