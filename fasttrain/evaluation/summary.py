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
from fasttrain.distributed import ONE_PROCESS, World
from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.evaluation.protocol import METRICS, said
from fasttrain.models import base_weights, fit, load_run, new_network
from fasttrain.sampling import heun_sampler, one_step
from fasttrain.settings import FinetuneSettings, RunSettings
from fasttrain_kernels import using

__all__ = ["evaluate_run", "table", "titles_of"]

TEACHER_STEPS = 18
DIGITS = {"kd": 5}
"""After the point; 3 of others."""
TITLES = {
    "real_floor": "real images against real images",
    "teacher_18": "diffusion model, 18 Heun steps (35 evaluations)",
    "one_step_before": "one step, before fine-tuning",
    "one_step_after": "one step, after fine-tuning",
    "one_step": "one step of the diffusion model",
}


def titles_of(settings: RunSettings, titles: dict[str, str] = TITLES) -> dict[str, str]:
    """What each row is, in words; the rows of a two-step generator are of two steps."""
    if isinstance(settings, FinetuneSettings) and settings.sigma_mid is not None:
        return {row: title.replace("one step,", "two steps,") for row, title in titles.items()}
    return titles


def evaluate_run(
    run: Path,
    which: str = "latest",
    world: World = ONE_PROCESS,
    batch: int | None = None,
    *,
    trust_urls: bool = False,
) -> dict[str, Any]:
    """Evaluate the run's average at a checkpoint over all processes, write `evaluation.json`,
    return its content:
    {"fd": {row: value}, ... every metric, "titles", "protocol": ..., "seconds": ...}.

    batch: images at once; `evaluate.batch` when not given.
    trust_urls: open the URL of the data that the run names; refused otherwise.
    """
    began = time.monotonic()
    network, settings = load_run(run, which)
    if batch is not None:
        changed = settings.evaluate.model_copy(update={"batch": batch})
        settings = settings.model_copy(update={"evaluate": changed})
    network.to(world.device)
    evaluator = Evaluator(settings, world, trust_urls=trust_urls)
    rows = {}
    console = Console(stderr=True, quiet=not world.is_main)
    with using(settings.kernels), console.status("evaluating") as status:
        status.update("real images")
        rows["real_floor"] = evaluator.real_floor()
        if isinstance(settings, FinetuneSettings):
            before = new_network("one_step", settings.network, settings.kernels)
            teacher = new_network("edm", settings.network, settings.kernels)
            weights = base_weights(run, checkpoint.find(run / "checkpoints", which))
            for base in (before, teacher):
                fit(base, weights, run)
                base.eval().to(world.device)
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
        for metric in METRICS
        if metric in rows["real_floor"]
    }
    result["titles"] = [titles_of(settings)[row] for row in rows]
    seen = checkpoint.find(run / "checkpoints", which).images
    result["protocol"] = world.on_main(evaluator.protocol) | {"images_seen": seen}
    result["seconds"] = world.from_main(time.monotonic() - began)
    as_json = json.dumps(result, indent=1)
    world.on_main(lambda: write_atomic(run / "evaluation.json", as_json))
    return result


def table(result: dict[str, Any]) -> str:
    """The result as plain text, with the protocol that the numbers belong to."""
    metrics = [name for name in METRICS if name in result]
    lines = [f"{'':49}" + "".join(f"{name:>11}" for name in metrics)]
    for row, title in zip(result["fd"], result["titles"], strict=True):
        values = (f"{result[m][row]:11.{DIGITS.get(m, 3)}f}" for m in metrics)
        lines.append(f"{title:49}" + "".join(values))
    seen = f"  model      after {result['protocol']['images_seen']:,} images"
    return "\n".join([*lines, *said(result["protocol"]), seen])
