"""The demo's fine-tuning under other settings of the discriminator: what each does to the result.

    python -m benchmarks.finetunings --demo DIR      # DIR: a finished `fasttrain demo --out DIR`

Writes `benchmarks/results/finetunings.json`: distance of one step to real digits, and seconds, for
each setting, from the same diffusion model. Run again, it goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from benchmarks.demo import machine
from fasttrain.checkpoints.stats import read_stats
from fasttrain.evaluation.result import values_of
from fasttrain.evaluation.summary import evaluate_run
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune

RESULTS = Path(__file__).parent / "results" / "finetunings.json"
SETTINGS = {
    "exact R1": ["r1.gamma=1e-3"],
    "approximated R1": ["r1={kind: approximated, weight: 100, sigma: 0.01}"],
    "reuse_fakes": ["reuse_fakes=true"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--demo", type=Path, required=True, help="a finished demo")
    demo = parser.parse_args().demo.resolve()
    rows = []
    for name, changes in SETTINGS.items():
        run = demo / name.replace(" ", "-")
        common = [f"data.path={demo / 'data'}", f"init={demo / 'digits-edm'}", f"run={run}"]
        settings = load_settings("digits-d2o-f", [*common, *changes], FinetuneSettings)
        finetune(settings, start())
        fd = values_of(evaluate_run(run), "fd")
        seconds = read_stats(run)[-1]["seconds"]
        rows.append({"name": name, "settings": changes, "fd": fd, "seconds": round(seconds, 1)})
        RESULTS.write_text(json.dumps({"machine": machine(), "runs": rows}, indent=1) + "\n")
    for row in rows:
        fd = row["fd"]
        print(f"{row['name']:<16} one step {fd['one_step_after']:.1f} (diffusion model "
              f"{fd['teacher_18']:.1f}), {row['seconds']:.0f} s")  # fmt: skip


if __name__ == "__main__":
    main()
