"""What an iteration of a fine-tuning costs on a GPU that is not there, from counts.

    python -m benchmarks.model imagenet64-d2o-f --gpu h200        # prints it
    python -m benchmarks.model --write                            # benchmarks/results/model.json

Launches, bytes and operations are traced on the meta device; instructions are those of the compiled
kernels (`fasttrain.analysis.speed`). The floor is what no kernel of these counts can be faster
than; the expectation has the shares of `fasttrain.analysis.speed.rates`. Neither is a measurement.
"""

from __future__ import annotations

import os

os.environ.pop("TRITON_INTERPRET", None)  # the keys are of compiled kernels

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from fasttrain.analysis.profiling.columns import EAGER, LIBRARY, Column
from fasttrain.analysis.speed.model import cost_of_all, described
from fasttrain.analysis.speed.phases import Operators, generator_phases, phases
from fasttrain.analysis.speed.rates import GPUS, Gpu
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError

RESULTS = Path(__file__).parents[1] / "results" / "model.json"
WRITTEN = {"imagenet64-d2o-f": 128, "cifar10-uncond-d2o-f": 64}
"""Recipes, and images a GPU."""
OTHERS = {
    "library": Operators("reference", patched=Column("library", "", patches=LIBRARY).operators),
    "eager": Operators(
        "reference", "contiguous", patched=Column("eager", "", patches=EAGER).operators
    ),
}
"""torch's fused operators, and plain ones."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe", nargs="?", default="imagenet64-d2o-f")
    parser.add_argument("--gpu", choices=list(GPUS), default="h200")
    parser.add_argument("--images", type=int, help="a GPU; default: 128, or a smaller batch")
    parser.add_argument("--write", action="store_true", help=f"all GPUs, into {RESULTS.name}")
    options = parser.parse_args()
    recipes = WRITTEN if options.write else {options.recipe: options.images}
    gpus = list(GPUS) if options.write else [options.gpu]
    try:
        found = {recipe: model(recipe, gpus, images) for recipe, images in recipes.items()}
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for recipe, result in found.items():
        for gpu in gpus:
            print(as_text(recipe, result["images"], GPUS[gpu], result["gpus"][gpu]), flush=True)
    if options.write:
        RESULTS.write_text(json.dumps(found, indent=1) + "\n")
    return 0


def model(recipe: str, gpus: list[str], images: int | None = None) -> dict[str, Any]:
    settings = load_settings(recipe, (), FinetuneSettings)
    images = images or min(128, settings.batch)
    ours = phases(settings, images)
    others = {
        name: generator_phases(settings, operators, images)[0] for name, operators in OTHERS.items()
    }
    result = {}
    for name in gpus:
        gpu = GPUS[name]
        result[name] = {
            **described(ours, gpu, graphs=settings.graphs),
            "generator of": {
                column: {phase: cost_of_all(launches, gpu) for phase, launches in traced.items()}
                for column, traced in others.items()
            },
        }
    return {"images": images, "gpus": result}


def as_text(recipe: str, images: int, gpu: Gpu, result: dict[str, Any]) -> str:
    lines = [f"{recipe}, {images} images a GPU, {gpu.name}: counted, not measured", ""]
    head = (
        f"{'':44} {'launches':>8} {'GB':>8} {'TFLOP':>8} {'floor':>8} {'expected':>8} {'CPU ms':>8}"
    )

    def row(name: str, cost: dict[str, Any]) -> str:
        ms = [1e3 * cost[key] for key in ("floor", "expected", "cpu")]
        work = f"{cost['bytes'] / 1e9:8.1f} {cost['flops'] / 1e12:8.2f}"
        times = " ".join(f"{value:8.2f}" for value in ms)
        return f"{name:44} {cost['launches']:8} {work} {times}  {cost['bound']}"

    lines.append(head)
    for phase, cost in result["phases"].items():
        often = "" if cost["times"] == 1 else f" x {cost['times']:.3g}"
        lines.append(row(phase + often, cost))
        for name, part in list(cost["operators"].items())[:6]:
            lines.append(row(f"    {name}", part))
    total = result["iteration"]
    floor, expected, cpu = (1e3 * total[key] for key in ("floor", "expected", "cpu"))
    lines += [
        "",
        f"iteration: floor {floor:.1f} ms, expected {expected:.1f} ms, CPU {cpu:.1f} ms, "
        f"{total['launches']:.0f} launches",
    ]
    for column, parts in result["generator of"].items():
        lines += [row(f"{column}: {phase}", cost) for phase, cost in parts.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
