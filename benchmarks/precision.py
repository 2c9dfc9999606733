"""Quality and time of the digits' fine-tuning in float32 and in bfloat16 on a CPU.

    python -m benchmarks.precision --out /tmp/precision --init /tmp/demo/digits-edm 0 1 2

Every seed fine-tunes the same pre-trained run, in both dtypes, one run after the other; a finished
run is taken as it is. `fd` is that of the demo: all 1,797 digits, no features in common with the
discriminator. CPU seconds are user and system time of the fine-tuning alone.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.demo import machine
from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.result import values_of
from fasttrain.evaluation.summary import evaluate_run
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune
from fasttrain_data import convert

__all__ = ["precision_part"]

RESULT = Path(__file__).parent / "results" / "precision-cpu.json"
DTYPES = ("float32", "bfloat16")


def row(out: Path, base: Path, seed: int, dtype: str) -> dict[str, Any]:
    """One fine-tuning, or what is known of it."""
    world, run = start(), out / f"{dtype}-{seed}"
    known = run / "row.json"
    if known.is_file():
        return dict(json.loads(known.read_text()))
    changes = [f"data.path={out / 'digits'}", f"seed={seed}", f"run={run}", f"init={base}"]
    changes += ["sample.every=0", "evaluate.every=0"]
    changes += [f"precision={dtype}", f"discriminator.precision={dtype}", "memory_format=auto"]
    before = time.process_time()
    finetune(load_settings("digits-d2o-f", changes, FinetuneSettings), world)
    cpu = time.process_time() - before
    result = {
        "seed": seed,
        "dtype": dtype,
        "threads": torch.get_num_threads(),
        "fd": values_of(evaluate_run(run, world=world), "fd"),
        "cpu_seconds": round(cpu, 1),
        "seconds": read_stats(run)[-1]["seconds"],
    }
    known.write_text(json.dumps(result))
    return result


def precision_part(result: Mapping[str, Any]) -> str:
    """The page's table: a seed a line."""
    about = result["machine"]
    lines = [
        f"{about['cpu']}, {result['rows'][0]['threads']} thread(s), torch {about['torch']}, other "
        f"work on the machine, from `benchmarks/results/{RESULT.name}`:",
        "",
        "| seed | fd float32 | fd bfloat16 | teacher | CPU s float32 | CPU s bfloat16 | ratio |",
        "|---|---|---|---|---|---|---|",
    ]
    for seed in sorted({row["seed"] for row in result["rows"]}):
        full, low = (
            next(r for r in result["rows"] if (r["seed"], r["dtype"]) == (seed, dtype))
            for dtype in DTYPES
        )
        values = [row["fd"]["one_step_after"] for row in (full, low)] + [full["fd"]["teacher_18"]]
        times = [full["cpu_seconds"], low["cpu_seconds"]]
        cells = [str(seed), *(f"{v:.1f}" for v in values), *(f"{t:.0f}" for t in times)]
        lines.append(f"| {' | '.join(cells)} | {times[0] / times[1]:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("seeds", type=int, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--init", type=Path, required=True, help="A run of digits-edm.")
    options = parser.parse_args()
    if not (options.out / "digits").exists():
        options.out.mkdir(parents=True, exist_ok=True)
        convert("digits", options.out / "digits")
    rows = [
        row(options.out, options.init, seed, dtype) for seed in options.seeds for dtype in DTYPES
    ]
    load = os.getloadavg()[1]
    result = {"machine": machine() | {"load_5_minutes": round(load, 1)}, "rows": rows}
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(precision_part(result))


if __name__ == "__main__":
    main()
