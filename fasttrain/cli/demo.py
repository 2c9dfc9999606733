"""`fasttrain demo`: real handwritten digits to a one-step generator and its report, in minutes.

The same steps as the separate commands, with the recipes `digits-edm` and `digits-d2o-f`:
shards, pre-training, D2O-F fine-tuning, evaluation, `report.html`, `summary.json`. Run again after
an interruption, it resumes.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch

from fasttrain.analysis.report.page import write_report
from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.result import text, values_of
from fasttrain.evaluation.summary import evaluate_run
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.files import write_atomic
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune
from fasttrain.training.pretrain import pretrain
from fasttrain_data import convert

__all__ = ["run_demo"]


def run_demo(out: Path, seed: int = 0) -> dict[str, Any]:
    """Run the whole story in `out`; returns the content of `out/summary.json`."""
    began = time.monotonic()
    data, diffusion, one_step = out / "data", out / "digits-edm", out / "digits-d2o-f"
    common = [f"data.path={data}", f"seed={seed}"]
    world = start()

    _say("1/5 shards: scikit-learn's handwritten digits")
    convert("digits", data)
    _say("2/5 pre-training a diffusion model")
    changes = [*common, f"run={diffusion}", "evaluate.every=null"]  # step 4 evaluates it
    pretrain(load_settings("digits-edm", changes, PretrainSettings), world)
    _say("3/5 fine-tuning it to one step (D2O-F)")
    settings = load_settings(
        "digits-d2o-f", [*common, f"run={one_step}", f"init={diffusion}"], FinetuneSettings
    )
    finetune(settings, world)
    _say("4/5 evaluating")
    result = evaluate_run(one_step, world=world)
    _say("5/5 writing the report")
    report = write_report(one_step)

    parts = [read_stats(run)[-1]["seconds"] for run in (diffusion, one_step)]
    # After an interruption the earlier sessions count too.
    seconds = max(time.monotonic() - began, sum(parts) + result["made"]["seconds"])
    summary = {
        "fd": values_of(result, "fd"),
        "kd": values_of(result, "kd"),
        "trainable_fraction": json.loads((one_step / "audit.json").read_text())[
            "trainable_fraction"
        ],
        "images_seen": settings.images,
        "seconds": round(seconds, 1),
        "seconds_pretrain": parts[0],
        "seconds_finetune": parts[1],
        "threads": torch.get_num_threads(),
        "seed": seed,
    }
    write_atomic(out / "summary.json", json.dumps(summary, indent=1))
    print(text(result))
    print(f"{summary['seconds']:.0f} s in all; report: {report}")
    return summary


def _say(line: str) -> None:
    print(line, flush=True)
