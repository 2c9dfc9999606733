"""How much of a training step goes by waiting for images: the metric `data/waiting` of real runs on
this CPU, and of a loop whose step leaves the CPU alone, as one on a GPU does.

    python -m benchmarks.data_waiting data/emoji      # a 64x64 colour set, as docs/data.md makes it

Writes benchmarks/results/data-waiting.json; then benchmarks.page.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.data_page import data_waiting_part
from benchmarks.demo import machine
from fasttrain.checkpoints.stats import read_stats
from fasttrain.data import ImageStream
from fasttrain_data import Options, convert, load_index, run_conversion

__all__ = ["training", "waiting_of_step"]

RESULTS = Path(__file__).parent / "results" / "data-waiting.json"
BATCH = 128
STEPS = (0.02, 0.1, 0.4)
WORKERS = (0, 1, 2)
QUIET = ["sample.count=1", "evaluate.samples=128", "checkpoint.every=1000000"]
SMALL_64 = [  # a small network for 64x64 colour images
    "network.img_resolution=64", "network.img_channels=3", "network.model_channels=16",
    "network.attn_resolutions=[]", "batch=32", "images=512", "report_every=64",
]  # fmt: skip


def training(run: Path, recipe: str, *changes: str) -> dict[str, Any]:
    """Train, and the waiting of its reports: of all, and of those after the first."""
    task = "pretrain" if recipe.endswith("-edm") else "finetune"
    command = [sys.executable, "-m", "fasttrain", task, recipe, f"run={run}", *QUIET, *changes]
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    lines = read_stats(run)
    shares = [line["data/waiting"] for line in lines]
    before_the_end = lines[-2]  # where a picture is drawn, too
    return {
        "images_per_second": before_the_end["images"] / before_the_end["seconds"],
        "waiting": statistics.mean(shares),
        "waiting_after_first_report": statistics.mean(shares[1:]),
    }


def waiting_of_step(
    path: Path, seconds: float, workers: int, *, batch: int = BATCH, batches: int = 60
) -> list[float]:
    """Median shares of an iteration, when a step sleeps, that go by in `next(stream)`: by the
    clock, and what this thread worked of it, which others on the machine hardly lengthen."""
    stream = ImageStream(path, batch=batch, streams=4, seed=0, workers=workers)
    next(stream)
    time.sleep(seconds)
    waits, works = [], []
    for _ in range(batches):
        began = time.perf_counter(), time.thread_time()
        next(stream)
        waits.append(time.perf_counter() - began[0])
        works.append(time.thread_time() - began[1])
        time.sleep(seconds)
    stream.close()
    return [median / (median + seconds) for median in map(statistics.median, (waits, works))]


def measured(path: Path, folder: Path) -> dict[str, Any]:
    digits, raw = folder / "digits", folder / "raw"
    convert("digits", digits)
    run_conversion(path, raw, Options(record="raw"))
    diffusion = folder / "digits-edm"
    training(diffusion, "digits-edm", f"data.path={digits}", "images=6400")
    runs = []
    for workers in (0, 2):
        workers_are = f"data.workers={workers}"
        tuned = training(
            folder / f"tuned-{workers}", "digits-d2o-f", f"data.path={digits}",
            f"init={diffusion}", "images=1536", "report_every=192", workers_are,
        )  # fmt: skip
        runs.append({"name": "fine-tuning, digits, 8x8, PNG", "workers": workers, **tuned})
        small = training(
            folder / f"small-{workers}", "digits-edm", f"data.path={path}", *SMALL_64, workers_are
        )
        runs.append({"name": "pre-training, emoji, 64x64, PNG", "workers": workers, **small})
    steps = [
        {
            "record": load_index(each).record,
            "workers": workers,
            "shares": {str(step): waiting_of_step(each, step, workers) for step in STEPS},
        }
        for each in (path, raw)
        for workers in WORKERS
    ]
    return {"batch": BATCH, "runs": runs, "steps": steps}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("set", type=Path, help="a 64x64 colour shard set with ten classes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        found = measured(arguments.set, Path(folder))
    note = "The machine was shared with other work."
    RESULTS.write_text(json.dumps({"machine": machine(), "note": note, **found}, indent=1) + "\n")
    print(data_waiting_part(json.loads(RESULTS.read_text())))


if __name__ == "__main__":
    main()
