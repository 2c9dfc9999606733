"""Whole training steps on a CPU: ours beside the published arithmetic, in one interleaved run.

    python -m benchmarks.cpu_step                     # about ten minutes
    python -m benchmarks.cpu_step --repetitions 2 --out FILE digits-d2o-f

Columns are processes that take turns, one unit of work each, on one thread, with the same weights
and images. `published`: the order of operations of the published code in plain operators, float32,
contiguous: group norm, modulation, SiLU and sums apart, the attention matrix in memory, torch's own
convolutions, fakes and real images judged one after the other, the discriminator of
`tests.discriminator.plain_discriminator`. `ours`: what the commands run with `auto` settings.

Work is measured in CPU seconds (user and system), which other work on the machine disturbs less
than wall time. Memory is the process's peak above what it held before the first step. The floor is
the arithmetic of our own step's products and convolutions, counted, at the highest rate that one of
the step's dtype reached here.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.cpu_step_page import COLUMNS, cpu_step_part
from benchmarks.cpu_step_units import EVALUATIONS, UNITS, Unit, operators
from benchmarks.demo import machine
from fasttrain.analysis.profiling.operators import OperatorCount
from fasttrain.models.precision import decided
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.heap import keep_memory
from fasttrain.system.switches import exact_float32

RESULT = Path(__file__).parent / "results" / "cpu-step.json"
CPU = torch.device("cpu")
RECIPES = {
    "digits-d2o-f": "digits-edm",
    "fashion-mnist-cpu-d2o-f": "fashion-mnist-cpu-edm",
}


def work(column: str, kind: str, recipe: str) -> None:
    """A column's process: prints a line for each unit that it is asked for."""
    torch.set_num_threads(1)
    exact_float32()
    if column == "ours":
        keep_memory()  # as every command does
    with operators(column):
        units = UNITS[kind](column, recipe)
        print(json.dumps(list(units)), flush=True)
        for line in sys.stdin:
            name = line.strip()
            if name == "flops":
                found = {unit: operations_of(run) for unit, run in units.items()}
                print(json.dumps(found), flush=True)
                continue
            before = _held()
            cpu, wall = time.process_time(), time.perf_counter()
            units[name]()
            result = {
                "cpu": time.process_time() - cpu,
                "wall": time.perf_counter() - wall,
                "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before,
            }
            print(json.dumps(result), flush=True)


def operations_of(run: Unit) -> int:
    with OperatorCount() as count:
        run()
    return count.total().flops


def _held() -> int:
    """Bytes resident now."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Worker:
    """A column's process, seen from outside."""

    def __init__(self, column: str, kind: str, recipe: str) -> None:
        variables = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.cpu_step", "--work", column, kind, recipe],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=variables,
        )  # fmt: skip
        self.units = self._read()

    def _read(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"a column has ended with status {self.process.wait()}")
        return json.loads(line)

    def ask(self, name: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(name + "\n")
        self.process.stdin.flush()
        return self._read()

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def measured(kind: str, recipe: str, repetitions: int) -> dict[str, Any]:
    """Each unit of both columns, by turns."""
    workers = {column: Worker(column, kind, recipe) for column in COLUMNS}
    rows: dict[str, Any] = {}
    for unit in workers["ours"].units:
        # The first one's peak is the unit's: memory that is given back stays with the process.
        taken = {column: [worker.ask(unit)] for column, worker in workers.items()}
        for _ in range(repetitions):
            for column, worker in workers.items():
                taken[column].append(worker.ask(unit))
        rows[unit] = {
            column: {
                "cpu_ms": 1e3 * statistics.median(row["cpu"] for row in timed[1:]),
                "wall_ms": 1e3 * statistics.median(row["wall"] for row in timed[1:]),
                "least_cpu_ms": 1e3 * min(row["cpu"] for row in timed[1:]),
                "peak_bytes": timed[0]["peak"],
            }
            for column, timed in taken.items()
        }
    operations = workers["ours"].ask("flops")
    for worker in workers.values():
        worker.close()
    for unit, row in rows.items():
        row["operations"] = operations[unit]
    return rows


def rates() -> dict[str, float]:
    """Operations a second of the fastest product or convolution of each dtype, one thread."""
    torch.set_num_threads(1)
    found = {}
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(1024, 1024).to(dtype)
        x = torch.randn(128, 128, 8, 8).to(dtype, memory_format=torch.channels_last)
        w = torch.randn(256, 128, 4, 4).to(dtype, memory_format=torch.channels_last)
        cases: list[tuple[int, Callable[[], Tensor]]] = [
            (2 * 1024**3, lambda a=a: a @ a),  # type: ignore[misc]
            (2 * 128 * 16 * 256 * 2048, lambda x=x, w=w: F.conv2d(x, w, None, 2, 1)),  # type: ignore[misc]
        ]
        best = 0.0
        for operations, run in cases:
            for _ in range(20):
                before = time.process_time()
                run()
                best = max(best, operations / (time.process_time() - before))
        found[str(dtype).removeprefix("torch.")] = best
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES))
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    if options.work:
        work(*options.work)
        return
    settings = {name: load_settings(name, [], FinetuneSettings) for name in options.recipes}
    auto, gain = decided(settings[options.recipes[0]], CPU)
    result: dict[str, Any] = {
        "machine": machine() | {"load": round(os.getloadavg()[0], 1), "threads": 1},
        "precision": auto.precision,
        "bfloat16_gain": None if gain is None else round(gain.gain, 2),
        "rates": rates(),
        "evaluations": EVALUATIONS,
        "recipes": {},
    }
    for name in options.recipes:
        units = measured("fine-tuning", name, options.repetitions)
        units |= measured("diffusion", RECIPES[name], options.repetitions)
        interval = settings[name].r1.lazy_interval or 10**9
        result["recipes"][name] = {"r1_interval": interval, "units": units}
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    print(cpu_step_part(result, options.out.stem))


if __name__ == "__main__":
    main()
