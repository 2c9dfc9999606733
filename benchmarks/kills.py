"""Runs killed at random moments, and what became of them.

    python -m benchmarks.kills                 # benchmarks/results/kills.json, then benchmarks.page
    python -m benchmarks.kills --kills 10 --out /tmp/kills.json

Each kill is a SIGKILL to one process or both of a small real fine-tuning (digits, six iterations, a
checkpoint every two), at a moment that is drawn from the seed and the kill's number; then the same
command runs to its end, and all tensors of the last checkpoint, the data cursor and the lines of
`stats.jsonl` must be those of a run that nothing happened to. Processes are forked from one that
has imported everything, as in `tests/faults`.

The file is written after each kill; the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import traceback
import warnings
from pathlib import Path

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}

import deepspeed  # noqa: F401  # here, once, instead of in each forked process
import torch

from benchmarks.kills_page import begun
from fasttrain.system.files import write_atomic
from tests.faults.lab import Lab
from tests.faults.random_kills import CELLS, kill_at_random

__all__ = ["main"]

RESULTS = Path(__file__).parent / "results" / "kills.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    result = begun(options.out, options.seed)
    numbers = [n for n in range(options.kills) if str(n) not in result["kills"]]
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder)) if numbers else None
        for number in numbers:
            assert lab is not None
            cell, draw = CELLS[number % len(CELLS)], random.Random(f"{options.seed} {number}")
            try:
                row = {**kill_at_random(lab, cell, draw), "problem": ""}
            except Exception:
                problem = traceback.format_exc()[-3000:]
                row = {"ranks": cell.ranks, "stage": cell.stage, "problem": problem}
            result["kills"][str(number)] = row
            write_atomic(options.out, json.dumps(result, indent=1) + "\n")
            print(f"{number + 1} of {options.kills}: {row}", flush=True)
    bad = [number for number, row in result["kills"].items() if row["problem"]]
    print(f"{len(result['kills']) - len(bad)} of {len(result['kills'])} bit-identical")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
