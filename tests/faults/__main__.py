"""Run the fault matrix and write what survived.

python -m tests.faults --out faults.json [NAME ...]
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}

import torch
import typer.main

from fasttrain.cli.app import app
from fasttrain.evaluation.lite2 import Lite2
from fasttrain.models.features import efficientnet_lite
from tests.faults.child import WARM, WITH_DEEPSPEED, warm_up
from tests.faults.lab import FAULTS, Lab
from tests.kept import EXTRACTOR, keep_command_lines

warm_up([*WARM, *WITH_DEEPSPEED])
for _name in (
    *("killed", "random_kills", "directories", "damaged", "data", "machine", "numbers", "stopped"),
    "starting",
):
    importlib.import_module(f"tests.faults.{_name}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    if unknown := set(options.names) - {fault.name for fault in FAULTS}:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message=".*fork.*", category=DeprecationWarning)
    rows = []
    read_once(efficientnet_lite.weights_path("lite0"))
    Lite2.load = EXTRACTOR  # type: ignore[method-assign, assignment]
    EXTRACTOR(None, None)
    keep_command_lines()
    typer.main.get_command(app)
    with tempfile.TemporaryDirectory() as folder:
        lab = Lab(Path(folder))
        for fault in FAULTS:
            if options.names and fault.name not in options.names:
                continue
            began, used, problem = time.monotonic(), cpu_seconds(), ""
            try:
                fault.act(lab)
            except Exception:
                problem = traceback.format_exc()
            seconds = time.monotonic() - began
            times = f"{seconds:6.1f} s {cpu_seconds() - used:6.1f} s of CPU"
            print(f"{'FAILED' if problem else 'ok':7}{times}  {fault.name}", flush=True)
            print(problem, end="", file=sys.stderr)
            rows.append(
                {
                    "name": fault.name,
                    "group": fault.group,
                    "done": fault.done,
                    "survives": fault.survives,
                    "problem": problem,
                }
            )
    if options.out:
        options.out.write_text(json.dumps(rows, indent=1))
    sys.exit(any(row["problem"] for row in rows))


def read_once(path: Path) -> None:
    """Children take a file of weights from memory, which costs a fifth of a run to unpickle."""
    read, weights = torch.load, torch.load(path, weights_only=True)

    def load(file: Any, *rest: Any, **options: Any) -> Any:
        return weights if file == path else read(file, *rest, **options)

    torch.load = load


def cpu_seconds() -> float:
    """Of this process and of the children that it has waited for."""
    return sum(os.times()[:4])


if __name__ == "__main__":
    main()
