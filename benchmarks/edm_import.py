"""What reading a published checkpoint costs: time and memory, at the real sizes.

    python -m benchmarks.edm_import        # benchmarks/results/edm-import.json

The checkpoints are made up, of networks with random weights, but built as EDM's are: the structure
decides what parsing costs. Each measurement has a process of its own and a file that lies in the
page cache. `peak` is the largest resident memory beyond what the imported packages take; the file
is mapped, so its pages count as soon as they are touched.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.demo import machine
from benchmarks.networks import PUBLISHED
from fasttrain.models.files.edm_pickle import read_checkpoint
from fasttrain.models.files.importing import import_model
from fasttrain.models.files.model_file import read_model_file
from fasttrain.models.networks import build_network
from fasttrain_data.pickle_data import MAX_OPERATIONS
from tests.edm_files import write_snapshot, write_training_state

RESULTS = Path(__file__).parent / "results" / "edm-import.json"
NETWORKS = {
    "edm-cifar10-32x32-cond-ve": {**PUBLISHED["ncsnpp-32"], "label_dim": 10, "augment_dim": 9},
    "edm-imagenet-64x64-cond-adm": PUBLISHED["adm-64"],
}
CASES = ("protocol 4", "protocol 2", "training state")
OWN = ("model_type", "img_resolution", "img_channels", "label_dim")


def write(name: str, case: str, path: Path) -> None:
    torch.manual_seed(0)
    network = build_network("edm", **NETWORKS[name])
    arguments = {key: value for key, value in NETWORKS[name].items() if key not in OWN}
    if case == "training state":
        write_training_state(path, network, arguments)
    else:
        write_snapshot(path, network, arguments, protocol=int(case[-1]))


def resident() -> int:
    """The process's largest resident memory so far, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(what: str, path: Path) -> dict[str, Any]:
    before, began = resident(), time.perf_counter()
    found: dict[str, Any] = {}
    if what == "parse":
        tensors = read_checkpoint(path).tensors
        left = next(iter(tensors.values())).budget.operations
        found = {"tensors": len(tensors), "operations": MAX_OPERATIONS - left}
    elif what == "read":
        found = {"tensors": len(read_model_file(path).weights)}
    else:
        found = {"parameters": import_model(path, path.with_suffix(".safetensors")).parameters}
    seconds = time.perf_counter() - began
    return {"seconds": round(seconds, 2), "peak": resident() - before, **found}


def in_process(*arguments: object) -> Any:
    """What this module prints when it is called with the arguments."""
    command = [sys.executable, "-m", "benchmarks.edm_import", *map(str, arguments)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return json.loads(done.stdout)


def import_part(result: Mapping[str, Any]) -> str:
    """Markdown: seconds and peak memory of an import, a file a line."""
    about = result["machine"]
    lines = [
        f"{about['cpu']}, {about['cores']} cores, torch {about['torch']}, from "
        "`benchmarks/results/edm-import.json`; memory is above that of the started process, the "
        "mapped file's pages included:",
        "",
        "| file | kind | MB | parameters | read, s | import, s | its peak, MB |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        done = row["import"]
        cells = [row["file"], row["kind"], f"{row['bytes'] / 1e6:,.0f}", f"{done['parameters']:,}"]
        cells += [f"{row['read']['seconds']:.1f}", f"{done['seconds']:.1f}"]
        cells += [f"{done['peak'] / 1e6:,.0f}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    if len(sys.argv) == 5:
        write(sys.argv[2], sys.argv[3], Path(sys.argv[4]))
        print("null")
        return
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
        return
    rows = []
    for name in NETWORKS:
        for case in CASES:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "checkpoint.pkl"
                in_process("write", name, case, path)
                row: dict[str, Any] = {"file": name, "kind": case, "bytes": path.stat().st_size}
                row |= {what: in_process(what, path) for what in ("parse", "read", "import")}
            print(json.dumps(row))
            rows.append(row)
    RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
