"""Diffusion models of the digits and of Fashion-MNIST under every preconditioning, each made a
one-step generator.

    python -m benchmarks.families digits --out DIR [NAME ...]
    python -m benchmarks.families fashion-mnist --data data/fashion-mnist --out DIR [NAME ...]

The same U-Net and a DiT are pre-trained as EDM, epsilon, v and flow models on equally many images
each, and fine-tuned by D2O-F; the U-Net of EDM also with adapters that train about as many
parameters as freezing level 1 does. Writes `benchmarks/results/families.json`: distances to real
images (`fd`, `kd`) of the diffusion model's 18 Heun steps, and of one step before and after. Rows
that are in the file already are kept; with names, these are measured again. Runs in DIR resume. One
seed and short runs: a row shows how a kind compares at equal images, not how good it can get.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.demo import machine
from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.result import values_of
from fasttrain.evaluation.summary import evaluate_run
from fasttrain.settings import FinetuneSettings, PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune
from fasttrain.training.pretrain import pretrain
from fasttrain_data import convert

__all__ = ["families_part"]

RESULTS = Path(__file__).parent / "results" / "families.json"
PREDICTIONS = {
    "EDM": "{kind: edm}",
    "epsilon": "{kind: epsilon}",
    "v": "{kind: v, betas: cosine}",
    "flow": "{kind: flow}",
}


@dataclass(frozen=True)
class Experiment:
    """One set of images: the recipes of both trainings, and what is changed in them.

    Attributes:
        dit: the DiT's options and size. ranks: of LoRA and of the rotations, which then train
        about as many parameters as freezing level 1.
        pretrain, finetune: images of each. changes: of every run.
    """

    recipes: tuple[str, str]
    dit: str
    ranks: tuple[int, int]
    pretrain: int
    finetune: int
    changes: tuple[str, ...] = ()

    def networks(self) -> dict[str, tuple[str, list[str]]]:
        """Name -> the override that sets it with a prediction, and what else pre-training takes:
        the DiT half the U-Net's rate."""
        dit = f"network={{{{model_type: DiT, label_dim: 10, {self.dit}, prediction: {{}}}}}}"
        return {"U-Net": ("network.prediction={}", []), "DiT": (dit, ["optimizer.rate=1e-3"])}

    def adapters(self) -> dict[str, list[str]]:
        lora, rotations = self.ranks
        return {
            "LoRA": [f"adapt={{kind: lora, rank: {lora}}}"],
            "rotations": [f"adapt={{kind: rotate, rank: {rotations}}}"],
        }


EXPERIMENTS = {
    "digits": Experiment(
        recipes=("digits-edm", "digits-d2o-f"),
        dit="img_resolution: 8, img_channels: 1, options: "
        "{{patch_size: 2, hidden_size: 128, depth: 3, num_heads: 4}}",
        ranks=(11, 64),
        pretrain=32000,
        finetune=4000,
    ),
    "fashion-mnist": Experiment(
        recipes=("fashion-mnist-cpu-edm", "fashion-mnist-cpu-d2o-f"),
        dit="img_resolution: 28, img_channels: 1, options: "
        "{{patch_size: 4, hidden_size: 128, depth: 4, num_heads: 4}}",
        ranks=(11, 96),
        pretrain=25600,
        finetune=4000,
        changes=("evaluate={samples: 1000}",),
    ),
}
ROWS = [f"{network}, {kind}" for network in ("U-Net", "DiT") for kind in PREDICTIONS]
ROWS += [f"U-Net, EDM, {name}" for name in ("LoRA", "rotations")]


def measured(experiment: Experiment, data: Path, out: Path, name: str) -> dict[str, Any]:
    """Train what a row names, and measure it."""
    network, kind, *adapter = name.split(", ")
    override, changes = experiment.networks()[network]
    diffusion = out / f"{network}-{kind}-diffusion"
    common = [f"data.path={data}", override.format(PREDICTIONS[kind]), *experiment.changes]
    common += ["sample.every=0", "evaluate.every=null"]
    first = [*common, *changes, f"run={diffusion}", f"images={experiment.pretrain}"]
    pretrain(load_settings(experiment.recipes[0], first, PretrainSettings), start())
    run = out / name.replace(", ", "-")
    second = [
        *common,
        f"init={diffusion}",
        f"run={run}",
        f"images={experiment.finetune}",
        *experiment.adapters().get("".join(adapter), []),
    ]
    finetune(load_settings(experiment.recipes[1], second, FinetuneSettings), start())
    result = evaluate_run(run)
    audit = json.loads((run / "audit.json").read_text())
    return {
        "name": name,
        "parameters": audit["parameters"],
        "trained": audit["trainable"],
        "fd": values_of(result, "fd"),
        "kd": values_of(result, "kd"),
        "seconds_pretrain": round(read_stats(diffusion)[-1]["seconds"], 1),
        "seconds_finetune": round(read_stats(run)[-1]["seconds"], 1),
    }


def families_part(result: Mapping[str, Any]) -> str:
    """A table of docs/models.md each set, a row each kind."""
    about = result["machine"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, torch {about['torch']}, from "
        "`benchmarks/results/families.json`:"
    ]
    for title, rows in result["sets"].items():
        experiment = EXPERIMENTS[title]
        lines += [
            "",
            f"{title}: {experiment.pretrain:,} images of pre-training, {experiment.finetune:,} of "
            f"fine-tuning; fd of other real images {rows[0]['fd']['real_floor']:.1f}.",
            "",
            "| network, model | parameters | that train | 18 Heun steps, fd (kd) | one step before "
            "| after |",
            "|---|---|---|---|---|---|",
        ]
        for row in rows:
            both = {key: f"{row['fd'][key]:.1f} ({row['kd'][key]:.3f})" for key in row["fd"]}
            cells = [row["name"], f"{row['parameters']:,}", f"{row['trained']:,}"]
            cells += [both[key] for key in ("teacher_18", "one_step_before", "one_step_after")]
            lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("set", choices=EXPERIMENTS)
    parser.add_argument("--data", type=Path, help="the converted set; digits: made if need be")
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("names", nargs="*", choices=[*ROWS, []], help="default: those not in it")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    data = (arguments.data or out / arguments.set).resolve()
    if arguments.set == "digits" and not data.exists():
        convert("digits", data)
    sets = json.loads(RESULTS.read_text())["sets"] if RESULTS.is_file() else {}
    kept = {row["name"]: row for row in sets.get(arguments.set, [])}
    for name in arguments.names or [name for name in ROWS if name not in kept]:
        kept[name] = measured(EXPERIMENTS[arguments.set], data, out, name)
        sets[arguments.set] = [kept[name] for name in ROWS if name in kept]
        result = {"machine": machine(), "sets": {s: sets[s] for s in EXPERIMENTS if s in sets}}
        RESULTS.write_text(json.dumps(result, indent=1) + "\n")
    for row in sets[arguments.set]:
        fd = row["fd"]
        print(f"{row['name']:<24} {row['trained']:>9,} of {row['parameters']:>9,} trained, "
              f"18 steps {fd['teacher_18']:6.1f}, one step {fd['one_step_before']:6.1f} -> "
              f"{fd['one_step_after']:6.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
