"""Trainings and commands on pretend GPUs: tasks for `tests.on_pretend_gpu.server`.

The recipes are the digits', with a small network, 16 images an iteration and two iterations; the
second has R1, a report, a sample grid, an evaluation and a checkpoint.
"""

from __future__ import annotations

import os
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tests.tiny import DISCRIMINATOR, NETWORK

BATCH, IMAGES = 16, 32
QUICK = [*NETWORK, f"batch={BATCH}", f"images={IMAGES}", f"report_every={BATCH}"]
QUICK += [f"checkpoint.every={BATCH}", "checkpoint.keep=2", "sample.count=4"]
PRETRAIN = ["digits-edm", *QUICK, "data.streams=2", "evaluate.every=null"]
FINETUNE = ["digits-d2o-f", *QUICK, "r1.interval=1", "discriminator.norm_group=8"]
FINETUNE += [*DISCRIMINATOR, "evaluate={samples: 12, components: 8}"]


def prepare(folder: str) -> None:
    """Write 60 of scikit-learn's digits as `digits`, a shard set of six shards."""
    from sklearn.datasets import load_digits

    from fasttrain_data import convert

    digits = load_digits()
    for label in range(10):
        place = Path(folder) / "pictures" / str(label)
        place.mkdir(parents=True)
        for number, image in enumerate(digits.images[digits.target == label][:6]):
            pixels = np.asarray(image * 255 / 16, dtype=np.uint8)
            Image.fromarray(pixels).save(place / f"{number}.png")
    convert(Path(folder) / "pictures", Path(folder) / "digits", images_per_shard=10)


def command(*words: str) -> dict[str, Any]:
    """Run a command line on this process's GPU; what the GPU was used for.

    Raises SystemExit with its status, unless that is 0.
    """
    from fasttrain.cli.app import main

    sys.argv = ["fasttrain", *words]
    try:
        main()
    except SystemExit as ended:
        if ended.code:
            raise
    used = [torch.cuda.max_memory_allocated(i) for i in range(torch.cuda.device_count())]
    return {"peak": used, "current": torch.cuda.current_device() if used else None}


def profile(*words: str) -> dict[str, Any]:
    """`fasttrain profile` with the rates of small copies and products: those of a GPU's size take
    a CPU minutes."""
    from fasttrain.analysis.profiling import meter

    meter.GPU_RATES = (1 << 16, 64)
    return command("profile", *words)


def train(*words: str) -> dict[str, Any]:
    """`command`, and its waiting calls, by `iteration N` and by what was due after it."""
    from fasttrain.training.run.run import Run
    from tests.pretend_gpu import counted

    read, do = Run.read, Run._do
    parts: dict[str, Counter[str]] = {"start": Counter()}
    tuned: list[bool] = []

    with counted() as seen:

        def part(name: str) -> None:
            """What waited since the last call belongs to the last part; now begins another."""
            lines = {f"{kind} {_place(line)}": n for (kind, line), n in seen.lines.items()}
            parts[list(parts)[-1]].update(lines)
            seen.clear()
            parts[name] = parts.pop(name, Counter())

        def counted_read(run: Run, *rest: Any) -> Any:
            part(f"iteration {run.iterations + 1}")
            tuned.append(torch.backends.cudnn.benchmark)
            return read(run, *rest)

        def counted_do(run: Run, now: set[str]) -> None:
            part(", ".join(sorted(now)) + f" after {run.iterations}" if now else "nothing")
            do(run, now)
            part(f"iteration {run.iterations}")

        Run.read, Run._do = counted_read, counted_do  # type: ignore[method-assign]
        found = command(*words)
        part("end")
    return {**found, "waits": parts, "tuned": tuned, "after": torch.backends.cudnn.benchmark}


def _place(line: str) -> str:
    """Without the folder of the packages."""
    return line.removeprefix(str(Path(__file__).parents[2]) + "/").rpartition("site-packages/")[2]


def killed(*words: str) -> None:
    """The command, killed by SIGKILL between the two steps of its second iteration."""
    from fasttrain.training.objectives import gan as objectives

    calls, judge = Counter[str](), objectives.discriminator_loss

    def killing(*args: Any, **kwargs: Any) -> Any:
        calls["discriminator"] += 1
        if calls["discriminator"] == IMAGES // BATCH:
            os.kill(os.getpid(), signal.SIGKILL)
        return judge(*args, **kwargs)

    objectives.discriminator_loss = killing
    command(*words)
