"""Each option of the objective, from the same diffusion model of the digits and with equally many
images: what it does to the result, and what it takes.

    python -m benchmarks.objectives --demo DIR [NAME ...]      # DIR: a finished `fasttrain demo`

Writes `benchmarks/results/objectives.json`: the distance of one step to real digits (`fd`) after
2,000 images, a quarter of the recipe's, and seconds, for each row; once for all, those before, of
the diffusion model's 18 Heun steps and of other real images. Rows that are in the file already are
kept; with names, these are measured, again if need be. Three seeds of short runs from one diffusion
model: their range says which differences are noise.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.demo import machine
from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.result import values_of
from fasttrain.evaluation.summary import evaluate_run
from fasttrain.settings.recipes import load_settings
from fasttrain.settings.registry import load
from fasttrain.settings.trainings import TRAININGS
from fasttrain.system.processes import start
from tests.shared import task_of

__all__ = ["objectives_part"]

RESULTS = Path(__file__).parent / "results" / "objectives.json"
SHORT = ["images=2000", "checkpoint.every=2000", "sample.every=0"]
"""Of every row."""
SMALL = [
    "discriminator.backbones=[{name: lite0, resolution: 32}]",
    "discriminator.resolutions=[32, 16]",
    "discriminator.width=128",
    "r1.interval=4",
]
"""Of every row with a GAN: features at 32 px instead of 64, a third of the time; and the exact
penalties, which would have one step at the recipe's interval of 16, have seven."""
APPROXIMATED = "r1={kind: approximated, weight: 100, sigma: 0.01}"
GAN: dict[str, list[str]] = {
    "the recipe": [],
    "relativistic": ["loss=relativistic"],
    "exact R2": ["r2={gamma: 1e-3, interval: 4}"],
    "relativistic, exact R2": ["loss=relativistic", "r2={gamma: 1e-3, interval: 4}"],
    "approximated R1 and R2": [
        APPROXIMATED,
        "r2={kind: approximated, weight: 100, sigma: 0.01}",
    ],
    "approximated R1 and R2 of a quarter": [
        "r1={kind: approximated, weight: 100, sigma: 0.01, share: 0.25}",
        "r2={kind: approximated, weight: 100, sigma: 0.01, share: 0.25}",
    ],
    "relativistic, centring": ["loss=relativistic", "centring=0.01"],
    "unconditional discriminator": ["discriminator.conditional=false"],
    "cosine rates": [
        "generator.decay={kind: cosine, until: 2000, end: 0.1}",
        "discriminator.optimizer.decay={kind: cosine, until: 2000, end: 0.1}",
    ],
    "linear gamma": ["r1.decay={kind: linear, until: 2000, end: 0.1}"],
    "reward": ["reward={weight: 0.1, features: {name: lite0, resolution: 32}}"],
}
"""Fine-tunings of `digits-d2o-f`, by name: their settings."""
DIFFUSED = [
    "discriminator.backbones=[{name: self, noise: [-1.0, 1.2]}]",
    "discriminator.resolutions=[8, 4]",
    "discriminator.width=128",
    "r1={gamma: 1e-3, interval: 4, inputs: features}",
]
"""A discriminator of diffused images: heads on the frozen diffusion model."""
POST_TRAINED = [
    "discriminator.backbones=[{name: self, noise: [-1.0, 1.2], train: true}]",
    "discriminator.resolutions=[8, 4]",
    "discriminator.width=128",
    APPROXIMATED,
]
"""Adversarial post-training: the diffusion model trains, too."""
DISTILLATIONS = {
    "pd": ["method=pd"],
    "cd": ["method=cd"],
    "ctm": ["method=ctm"],
    "rcd": ["method=rcd"],
    "cd, features": ["method=cd", "distance=features", "features={name: lite0, resolution: 32}"],
}
"""Distillations of `digits-cd`."""
ROWS: dict[str, tuple[str, list[str]]] = {
    **{name: ("digits-d2o-f", [*SMALL, *changes]) for name, changes in GAN.items()},
    "diffused images": ("digits-d2o-f", DIFFUSED),
    "ratio of diffused images": ("digits-d2o-f", [*DIFFUSED, "loss=ratio"]),
    "adversarial post-training": ("digits-d2o-f", POST_TRAINED),
    "adversarial post-training, nothing frozen": ("digits-d2o-f", [*POST_TRAINED, "freeze=none"]),
    **{name: ("digits-cd", changes) for name, changes in DISTILLATIONS.items()},
    "cd and GAN": ("digits-cd-gan", [f"gan.{change}" for change in SMALL]),
    "dmd": ("digits-dmd", []),
    "dmd, the generator in every fifth": ("digits-dmd", ["generator_every=5"]),
    "sid": ("digits-dmd", ["form=sid"]),
    "dmd and GAN": ("digits-dmd-gan", [f"gan.{change}" for change in SMALL]),
    "Frechet distance": ("digits-fd-f", []),
    "Frechet distance, one judge": ("digits-fd-f", ["judges=[{extractor: lite0, resolution: 64}]"]),
    "Frechet distance by class": ("digits-fd-f", ["class_length=0.5"]),
    "Frechet distance by class and GAN": ("digits-fd-gan", [f"gan.{change}" for change in SMALL]),
    "GAN after Frechet distance": ("digits-d2o-f", SMALL),
}
"""Name -> recipe and settings."""
BEGINS_WITH = {"GAN after Frechet distance": "Frechet distance"}
"""Rows that begin with another row's model instead of the diffusion model."""
LONGER = ("the recipe", *list(DISTILLATIONS)[:4], "Frechet distance")
ROWS |= {
    f"{name}, 8,000 images": (ROWS[name][0], [*ROWS[name][1], "images=8000"]) for name in LONGER
}


SEEDS = range(3)


def run_of(demo: Path, name: str, seed: int) -> Path:
    return demo / "objectives" / f"{name.replace(' ', '-').replace(',', '')}-{seed}"


def trained(demo: Path, name: str, seed: int) -> dict[str, Any]:
    """Train one row; its last line of statistics, which has its evaluation."""
    recipe, changes = ROWS[name]
    run = run_of(demo, name, seed)
    init = run_of(demo, BEGINS_WITH[name], seed) if name in BEGINS_WITH else demo / "digits-edm"
    common = [f"data.path={demo / 'data'}", f"init={init}", f"run={run}", f"seed={seed}"]
    changes = [*common, *SHORT, *changes]
    task = task_of(recipe)
    train = load(f"fasttrain.training.{task}:{task}")
    train(load_settings(recipe, changes, TRAININGS[task].schema), start())
    return read_stats(run)[-1]


def measured(demo: Path, name: str) -> dict[str, Any]:
    """One row; `fd` and `seconds` of each seed."""
    last = [trained(demo, name, seed) for seed in SEEDS]
    return {
        "name": name,
        "recipe": ROWS[name][0],
        "settings": ROWS[name][1],
        "images": last[0]["images"],
        "fd": [line["fd"] for line in last],
        "seconds": [round(line["seconds"], 1) for line in last],
    }


def baselines(demo: Path) -> dict[str, float]:
    """The rows of the table of a run that do not depend on its training."""
    fd = values_of(evaluate_run(run_of(demo, next(iter(ROWS)), 0)), "fd")
    return {name: value for name, value in fd.items() if name != "one_step_after"}


def objectives_part(result: Mapping[str, Any]) -> str:
    """A row of docs/training.md each."""
    about, fd = result["machine"], result["baselines"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, torch {about['torch']}, from "
        "`benchmarks/results/objectives.json`; fd of one step before "
        f"{fd['one_step_before']:.0f}, of the diffusion model's 35 evaluations "
        f"{fd['teacher_18']:.0f}, of other real digits {fd['real_floor']:.0f}:",
        "",
        "| objective | recipe | settings | fd, mean of three seeds | lowest to highest |",
        "|---|---|---|---|---|",
    ]
    hidden = {*SMALL, *(f"gan.{change}" for change in SMALL)}
    for row in result["runs"]:
        shown = [f"`{change}`" for change in row["settings"] if change not in hidden]
        mean = sum(row["fd"]) / len(row["fd"])
        cells = [row["name"], f"`{row['recipe']}`", ", ".join(shown), f"{mean:.0f}"]
        cells.append(f"{min(row['fd']):.0f} to {max(row['fd']):.0f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--demo", type=Path, required=True, help="a finished demo")
    parser.add_argument("names", nargs="*", choices=[*ROWS, []], help="default: those not in it")
    arguments = parser.parse_args()
    demo = arguments.demo.resolve()
    result = json.loads(RESULTS.read_text()) if RESULTS.is_file() else {"runs": []}
    kept = {row["name"]: row for row in result["runs"]}
    for name in arguments.names or [name for name in ROWS if name not in kept]:
        kept[name] = measured(demo, name)
        fd = result.get("baselines") or baselines(demo)
        rows = [kept[name] for name in ROWS if name in kept]
        result = {"machine": machine(), "settings": SHORT, "baselines": fd, "runs": rows}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    print("before and beside: ", {name: round(fd, 1) for name, fd in result["baselines"].items()})
    for row in result["runs"]:
        fd = " ".join(f"{value:6.1f}" for value in row["fd"])
        print(f"{row['name']:<36} {fd}, {sum(row['seconds']) / len(SEEDS):.0f} s")


if __name__ == "__main__":
    main()
