"""Diffusion models of the digits under every preconditioning, each made a one-step generator.

    python -m benchmarks.families --out DIR [NAME ...]

The same U-Net and a DiT of about as many parameters are pre-trained as EDM, epsilon, v and flow
models on 32,000 images each, and fine-tuned by D2O-F on 4,000; the U-Net of EDM also with adapters
that train about as many parameters as freezing level 1 does. Writes
`benchmarks/results/families.json`: distances to real digits (`fd`, `kd`) of the diffusion model's
18 Heun steps, and of one step before and after. Rows that are in the file already are kept; with
names, these are measured again. Runs in DIR resume. One seed and short runs: a row shows how a kind
compares at equal images, not how good it can get.
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
DIT = (
    "network={{model_type: DiT, img_resolution: 8, img_channels: 1, label_dim: 10, options: "
    "{{patch_size: 2, hidden_size: 128, depth: 3, num_heads: 4}}, prediction: {}}}"
)
NETWORKS: dict[str, tuple[str, list[str]]] = {
    "U-Net": ("network.prediction={}", []),
    "DiT": (DIT, ["optimizer.rate=1e-3"]),
}
"""Name -> the override that sets it with a prediction, and what else pre-training takes: the DiT
half the U-Net's rate."""
ADAPTERS = {
    "LoRA": ["adapt={kind: lora, rank: 11}"],
    "rotations": ["adapt={kind: rotate, rank: 64}"],
}
ROWS = [f"{network}, {kind}" for network in NETWORKS for kind in PREDICTIONS]
ROWS += [f"U-Net, EDM, {name}" for name in ADAPTERS]


def measured(out: Path, name: str) -> dict[str, Any]:
    """Train what a row names, and measure it."""
    network, kind, *adapter = name.split(", ")
    override, changes = NETWORKS[network]
    diffusion = out / f"{network}-{kind}-diffusion"
    common = [f"data.path={out / 'digits'}", override.format(PREDICTIONS[kind])]
    common += ["sample.every=0", "evaluate.every=null"]
    first = [*common, *changes, f"run={diffusion}", "images=32000"]
    pretrain(load_settings("digits-edm", first, PretrainSettings), start())
    run = out / name.replace(", ", "-")
    second = [
        *common,
        f"init={diffusion}",
        f"run={run}",
        "images=4000",
        *ADAPTERS.get("".join(adapter), []),
    ]
    finetune(load_settings("digits-d2o-f", second, FinetuneSettings), start())
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
    """A row of docs/models.md each."""
    about = result["machine"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, torch {about['torch']}, from "
        "`benchmarks/results/families.json`; fd of other real digits "
        f"{result['runs'][0]['fd']['real_floor']:.1f}:",
        "",
        "| network, model | parameters | that train | 18 Heun steps, fd (kd) | one step before | "
        "after |",
        "|---|---|---|---|---|---|",
    ]
    for run in result["runs"]:
        both = {key: f"{run['fd'][key]:.1f} ({run['kd'][key]:.3f})" for key in run["fd"]}
        cells = [run["name"], f"{run['parameters']:,}", f"{run['trained']:,}"]
        cells += [both[key] for key in ("teacher_18", "one_step_before", "one_step_after")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, required=True, help="folder for the runs")
    parser.add_argument("names", nargs="*", choices=[*ROWS, []], help="default: those not in it")
    arguments = parser.parse_args()
    out = arguments.out.resolve()
    if not (out / "digits").exists():
        convert("digits", out / "digits")
    rows = json.loads(RESULTS.read_text())["runs"] if RESULTS.is_file() else []
    kept = {row["name"]: row for row in rows}
    for name in arguments.names or [name for name in ROWS if name not in kept]:
        kept[name] = measured(out, name)
        rows = [kept[name] for name in ROWS if name in kept]
        RESULTS.write_text(json.dumps({"machine": machine(), "runs": rows}, indent=1) + "\n")
    for row in rows:
        fd = row["fd"]
        print(f"{row['name']:<24} {row['trained']:>9,} of {row['parameters']:>9,} trained, "
              f"18 steps {fd['teacher_18']:6.1f}, one step {fd['one_step_before']:6.1f} -> "
              f"{fd['one_step_after']:6.1f}")  # fmt: skip


if __name__ == "__main__":
    main()
