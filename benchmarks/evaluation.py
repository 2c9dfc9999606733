"""Time and peak memory of evaluation's numbers at the field's size: 50,000 images, 2,048 features.

    python -m benchmarks.evaluation      # benchmarks/results/evaluation.json

Features are random, float32; each part runs in a process of its own, whose peak memory is the
operating system's, beside what it was before (torch, and the features where they are kept). CPU
seconds are those of all threads: what the machine did for others does not count in them.
Precision and recall run at 50,000 images on a share of the rows, as one process of many takes
them, and whole at 10,000.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.demo import machine
from fasttrain.evaluation.metrics.distances import frechet_from_statistics, kernel_distance
from fasttrain.evaluation.metrics.neighbours import nearest, precision_recall
from fasttrain.evaluation.metrics.resampling import frechet_estimate, kernel_estimate
from fasttrain.evaluation.metrics.statistics import Moments, Statistics
from fasttrain.system.processes import World

RESULTS = Path(__file__).parent / "results" / "evaluation.json"
IMAGES, WIDTH, BATCH = 50_000, 2048, 64
WORLD = World(0, 1, torch.device("cpu"))
SCALE = torch.logspace(0, -2, WIDTH)
"""Of the features: their covariance has a wide spectrum, as Inception's has."""


def features(images: int, seed: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(images, WIDTH, generator=draw) * SCALE + seed / 100


def moments_of(images: int, seed: int) -> Statistics:
    """Of features that are drawn, taken in and forgotten batch by batch."""
    draw = torch.Generator().manual_seed(seed)
    moments = Moments(WIDTH)
    for start in range(0, images, BATCH):
        count = min(BATCH, images - start)
        moments.update(torch.randn(count, WIDTH, generator=draw) * SCALE + seed / 100)
    return moments.statistics(WORLD)


def small(seed: int) -> Statistics:
    """Statistics that take little time to get."""
    x = features(4096, seed).double()
    return Statistics(x.mean(0), x.T.cov(), len(x))


def statistics() -> Callable[[], Any]:
    return lambda: moments_of(IMAGES, 0) and None


def fd() -> Callable[[], Any]:
    one, other = small(0), small(1)
    return lambda: frechet_from_statistics(one.mu, one.sigma, other.mu, other.sigma)


def fd_with_interval() -> Callable[[], Any]:
    reference, fake = small(0), features(IMAGES, 1)
    moments = Moments(WIDTH)
    for part in fake.split(1024):
        moments.update(part)
    made = moments.statistics(WORLD)
    return lambda: vars(frechet_estimate(reference, made, fake, WORLD))


def kd() -> Callable[[], Any]:
    real, fake = features(IMAGES, 0), features(IMAGES, 1)
    return lambda: vars(kernel_estimate(real, fake, WORLD))


def kd_all_pairs() -> Callable[[], Any]:
    real, fake = features(10_000, 0), features(10_000, 1)
    return lambda: kernel_distance(real, fake)


def neighbours_share() -> Callable[[], Any]:
    """2,048 of the 50,000 rows: a 73rd of precision and recall, which go over three times as many
    rows."""
    real = features(IMAGES, 0)
    return lambda: float(torch.cat([nearest(p, real, 4) for p in real[:2048].split(1024)]).mean())


def precision_recall_whole() -> Callable[[], Any]:
    real, fake = features(10_000, 0), features(10_000, 1)
    return lambda: precision_recall(real, fake)


PARTS = {
    "statistics": statistics,
    "fd": fd,
    "fd_with_interval": fd_with_interval,
    "kd": kd,
    "kd_all_pairs_of_10000": kd_all_pairs,
    "nearest_of_2048_rows": neighbours_share,
    "precision_recall_of_10000": precision_recall_whole,
}


TITLES = {
    "statistics": "mean and covariance of 50,000 images, drawn and streamed",
    "fd": "`fd` of two means and covariances",
    "fd_with_interval": "`fd` with its interval, 50,000 images kept",
    "kd": "`kd`, 100 subsets of 1,000, twice 50,000 images kept",
    "kd_all_pairs_of_10000": "`kd` over all pairs, twice 10,000 images",
    "precision_recall_of_10000": "precision and recall, twice 10,000 images",
    "nearest_of_2048_rows": "a 73rd of precision and recall, 50,000 images kept",
}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(name: str) -> dict[str, Any]:
    """In a process of its own."""
    work = PARTS[name]()
    before, began, busy = peak(), time.monotonic(), time.process_time()
    value = work()
    return {
        "seconds": round(time.monotonic() - began, 1),
        "cpu_seconds": round(time.process_time() - busy, 1),
        "peak_bytes_before": before,
        "peak_bytes": peak(),
        "value": value,
    }


def evaluation_part(result: Mapping[str, Any]) -> str:
    """Markdown: CPU seconds and peak memory of each part."""
    about = result["machine"]
    lines = [
        f"{about['cpu']}, {about['threads']} threads, torch {about['torch']}, on a machine with "
        "other work, so CPU seconds of all threads; from `benchmarks/results/evaluation.json`:",
        "",
        "| | CPU seconds | peak memory of the process, GB |",
        "|---|---|---|",
    ]
    for name, title in TITLES.items():
        found = result["parts"][name]
        peak_gb = found["peak_bytes"] / 1e9
        lines.append(f"| {title} | {found['cpu_seconds']:.0f} | {peak_gb:.2f} |")
    return "\n".join(lines)


def main() -> None:
    parts = {}
    for name in PARTS:
        command = [sys.executable, "-m", "benchmarks.evaluation", name]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        parts[name] = json.loads(done.stdout)
        print(name, parts[name], flush=True)
    result = {
        "machine": machine() | {"threads": torch.get_num_threads()},
        "images": IMAGES,
        "width": WIDTH,
        "batch": BATCH,
        "parts": parts,
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
