"""What two processes hold of the real ImageNet-64 ADM network at ZeRO 0 to 3, D2O-F beside full
fine-tuning.

    python -m benchmarks.sharding      # benchmarks/results/sharding.json, then benchmarks.page

Two processes build the network (295,899,267 parameters) with real tensors, frozen ones in bfloat16,
and take one optimizer step, for which images of 8x8 do; then every tensor that the engine holds is
measured. Beside that stands what `fasttrain plan` says, for two processes and for more.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.demo import machine
from fasttrain.analysis.planning.sizes import sizes_of
from fasttrain.analysis.planning.state import state_of
from fasttrain.analysis.speed.networks import generator_of
from fasttrain.models.build import new_network, prepare_network
from fasttrain.models.freezing import apply_freezing
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import World, start, stop
from fasttrain.training.ema import EMA
from fasttrain.training.engines.zero import DeepSpeedEngine

RESULTS = Path(__file__).parent / "results" / "sharding.json"
RECIPE, SIZE = "imagenet64-d2o-f", 8
KINDS = {"D2O-F": "1", "full fine-tuning": "none"}
WORLDS = (2, 8, 32)
ZERO = (
    "engine.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0, "
    "stage3_max_live_parameters: 0, stage3_max_reuse_distance: 0}}"
)
"""At stage 3, only what is sharded counts here; by default 50 million numbers stay gathered."""


def settings_of(freeze: str, stage: int = 0) -> FinetuneSettings:
    changes = [f"freeze={freeze}", "precision=bfloat16", f"engine.zero_stage={stage}", ZERO]
    return load_settings(RECIPE, changes, FinetuneSettings)


def held(settings: FinetuneSettings, world: World) -> dict[str, int]:
    """Bytes on this process after a step."""
    torch.manual_seed(0)
    network = new_network("one_step", settings.network).eval()
    apply_freezing(network.model, settings.freeze)
    prepare_network(network, settings, world.device)
    stage = settings.engine.zero_stage
    engine = DeepSpeedEngine(network, settings.generator, settings.engine, world, stage=stage)
    average = EMA(engine, half_life=1)
    labels = torch.zeros(1, settings.network.label_dim)
    engine.backward(engine(torch.randn(1, 3, SIZE, SIZE), 80.0, labels).square().mean())
    assert engine.step()
    average.update(images=1, seen=1)
    return engine.held() | {"average": average.held()}


def measure(freeze: str, stage: int, out: Path) -> None:
    """In each of two processes; both end afterwards, for DeepSpeed lets go of nothing before."""
    world = start()
    ranks = world.gather(held(settings_of(freeze, stage), world))
    if world.is_main:
        out.write_text(json.dumps({kind: max(r[kind] for r in ranks) for kind in ranks[0]}))
    stop()


def measured(freeze: str, stage: int) -> dict[str, int]:
    """Bytes on the process of two that holds most."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "held.json"
        launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2"]
        subprocess.run(
            [*launcher, "--standalone", "-m", "benchmarks.sharding", freeze, str(stage), str(out)],
            env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
            check=True,
        )
        found = json.loads(out.read_text())
    print(freeze, stage, found, flush=True)
    return found


def sharding_part(result: Mapping[str, Any]) -> str:
    """Markdown: Adam's state and everything, in GB a process."""
    about = result["machine"]
    lines = [
        f"{result['parameters']:,} parameters; measured on {about['cpu']}, {about['cores']} cores, "
        f"torch {about['torch']}, from `benchmarks/results/sharding.json`; GB (10^9 bytes) a "
        "process:",
        "",
        "| | ZeRO | Adam's moments, 2 processes, measured | all state, 2 processes, measured "
        "| planned | 8 processes, planned | 32 processes, planned |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, stages in result["measured"].items():
        for stage, found in stages.items():
            planned = [result["planned"][name][stage][str(world)] for world in WORLDS]
            cells = [found["moments"], sum(found.values()), *planned]
            shown = " | ".join(f"{value / 1e9:.2f}" for value in cells)
            lines.append(f"| {name if stage == '0' else ''} | {stage} | {shown} |")
    return "\n".join(lines)


def planned() -> dict[str, Any]:
    """All state a process, in bytes: kind -> stage -> processes -> bytes."""
    found: dict[str, Any] = {}
    for name, freeze in KINDS.items():
        sizes = sizes_of(generator_of(settings_of(freeze)))
        found[name] = {
            str(stage): {str(world): state_of(sizes, stage, world).total for world in WORLDS}
            for stage in range(4)
        }
    return found


def main() -> None:
    if len(sys.argv) > 1:
        freeze, stage, out = sys.argv[1:]
        measure(freeze, int(stage), Path(out))
        return
    result = {
        "machine": machine(),
        "parameters": sizes_of(generator_of(settings_of("1"))).total,
        "measured": {
            name: {str(stage): measured(freeze, stage) for stage in range(4)}
            for name, freeze in KINDS.items()
        },
        "planned": planned(),
    }
    RESULTS.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
