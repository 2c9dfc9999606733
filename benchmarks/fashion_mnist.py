"""Fashion-MNIST on a CPU: pre-training and D2O-F of a narrow network, and what came out.

    python -m benchmarks.fashion_mnist --data data/fashion-mnist --out runs

Writes `benchmarks/results/fashion-mnist.json`: distances of one step before and after fine-tuning,
of the diffusion model's 35 evaluations and of real images, images seen, and seconds. Run again, it
goes on where it stopped; finished runs are only evaluated.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.demo import machine
from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.result import text, values_of
from fasttrain.evaluation.summary import evaluate_run, rows_of
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune
from fasttrain.training.pretrain import pretrain

RESULTS = Path(__file__).parent / "results" / "fashion-mnist.json"
BEFORE, AFTER = "fashion-mnist-cpu-edm", "fashion-mnist-cpu-d2o-f"


def fashion_part(result: Mapping[str, Any]) -> str:
    """Markdown: the distances, a row of the evaluation a line."""
    about, seconds = result["machine"], result["seconds"]
    seen = result["images"]
    lines = [
        f"{about['cpu']}, torch {about['torch']}, one thread beside other work, from "
        f"`benchmarks/results/fashion-mnist.json`: {seen[BEFORE]:,} images of pre-training in "
        f"{seconds[BEFORE] / 60:.0f} minutes, {seen[AFTER]:,} of fine-tuning in "
        f"{seconds[AFTER] / 60:.0f}. Distances of {result['protocol']['images']:,} images, lite2, "
        f"{result['protocol']['components']} components:",
        "",
        "| | fd | kd |",
        "|---|---|---|",
    ]
    for row in rows_of(load_settings(AFTER, [], FinetuneSettings)):
        fd, kd = result["fd"][row.name], result["kd"][row.name]
        lines.append(f"| {row.title} | {fd:.1f} | {kd:.3f} |")
    course = ", ".join(f"{fd:.0f} after {images:,}" for images, fd in result["fd_as_it_went"])
    return "\n".join([*lines, "", f"As fine-tuning went: {course} images."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="shards, as converted")
    parser.add_argument("--out", type=Path, required=True, help="folder of the two runs")
    options = parser.parse_args()
    data, out = f"data.path={options.data}", options.out.resolve()
    world = start()
    pretrain(load_settings(BEFORE, [data, f"run={out / BEFORE}"], PretrainSettings), world)
    changes = [data, f"run={out / AFTER}", f"init={out / BEFORE}"]
    finetune(load_settings(AFTER, changes, FinetuneSettings), world)
    result = evaluate_run(out / AFTER)
    print(text(result))
    lines = {name: read_stats(out / name)[-1] for name in (BEFORE, AFTER)}
    found = {
        "machine": machine(),
        "note": "The machine was shared with other work; each training had one thread.",
        **{metric: values_of(result, metric) for metric in ("fd", "fd_full", "kd")},
        "protocol": result["protocol"],
        "images": {name: line["images"] for name, line in lines.items()},
        "seconds": {name: round(line["seconds"], 1) for name, line in lines.items()},
        "fd_as_it_went": [
            [line["images"], line["fd"]] for line in read_stats(out / AFTER) if "fd" in line
        ],
    }
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
