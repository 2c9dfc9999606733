"""`fasttrain evaluate RUN`: the run's numbers beside what they must be compared with.

A fine-tuned generator is set beside its own start (one step before), the diffusion model it came
from (18 Heun steps, 35 evaluations) and the real floor; a diffusion run beside the real floor. The
result is kept in `RUN/evaluation.json` with the protocol, without which a number means nothing.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from fasttrain import checkpoint
from fasttrain.checkpoint import write_atomic
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.models import base_weights, fit, load_run, new_network
from fasttrain.sampling import heun_sampler, one_step
from fasttrain.settings import FinetuneSettings

__all__ = ["evaluate_run", "table"]

TEACHER_STEPS = 18
TITLES = {
    "real_floor": "real images against real images",
    "teacher_18": "diffusion model, 18 Heun steps (35 evaluations)",
    "one_step_before": "one step, before fine-tuning",
    "one_step_after": "one step, after fine-tuning",
    "one_step": "one step of the diffusion model",
}


def evaluate_run(run: Path, which: str = "latest") -> dict[str, Any]:
    """Evaluate the run's average at a checkpoint, write `evaluation.json`, return its content:
    {"fd": {row: value}, "fd_full": ..., "kd": ..., "protocol": ..., "seconds": ...}."""
    began = time.monotonic()
    network, settings = load_run(run, which)
    evaluator = Evaluator(settings)
    rows = {}
    with Console(stderr=True).status("evaluating") as status:
        status.update("real images")
        rows["real_floor"] = evaluator.real_floor()
        if isinstance(settings, FinetuneSettings):
            before = new_network("one_step", settings.network, settings.kernels)
            teacher = new_network("edm", settings.network, settings.kernels)
            weights = base_weights(run, checkpoint.find(run / "checkpoints", which))
            for base in (before, teacher):
                fit(base, weights, run)
                base.eval()
            status.update("diffusion model")
            rows["teacher_18"] = evaluator(heun_sampler, teacher, num_steps=TEACHER_STEPS)
            status.update("one step")
            rows["one_step_before"] = evaluator(settings.steps(), before)
            rows["one_step_after"] = evaluator(settings.steps(), network)
        else:
            status.update("diffusion model")
            rows["teacher_18"] = evaluator(heun_sampler, network, num_steps=TEACHER_STEPS)
            rows["one_step"] = evaluator(one_step, network)
    result: dict[str, Any] = {
        metric: {row: values[metric] for row, values in rows.items()}
        for metric in ("fd", "fd_full", "kd")
    }
    result["protocol"] = {
        **evaluator.extractor.protocol,
        "images": evaluator.samples,
        "components": evaluator.settings.components,
        "images_seen": checkpoint.find(run / "checkpoints", which).images,
        "reference": str(settings.data.path),
    }
    result["seconds"] = time.monotonic() - began
    write_atomic(run / "evaluation.json", json.dumps(result, indent=1))
    return result


def table(result: dict[str, Any]) -> str:
    """The result as plain text, with the protocol that the numbers belong to."""
    lines = [f"{'':49}{'fd':>9}{'fd_full':>9}{'kd':>11}"]
    for row, fd in result["fd"].items():
        full, kd = result["fd_full"][row], result["kd"][row]
        lines.append(f"{TITLES[row]:49}{fd:9.3f}{full:9.3f}{kd:11.5f}")
    protocol = ", ".join(f"{key} {value}" for key, value in result["protocol"].items())
    return "\n".join([*lines, f"protocol: {protocol}"])
