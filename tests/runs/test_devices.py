"""Whole runs under CUDA's device rules, on pretend GPUs: nothing of the CPU meets what is on a GPU,
and the host waits for the GPU where that is known, and no more."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.stats import read_stats

TESTS = Path(__file__).parents[1]

PROCESS = """
import json, os, sys
import pretend_gpu  # before torch
pretend_gpu.install(gpus=1)
import torch
import torch.distributed
from triton.runtime.interpreter import GridExecutor
torch.set_num_threads(1)
# A build without NCCL lacks the name, which is asked for where NCCL is said to be there.
vars(torch.distributed.distributed_c10d).setdefault("ProcessGroupNCCL", type("Nccl", (), {}))
launches = []
launch = GridExecutor.__call__
def counted(self, *arguments, **options):
    launches.append(self.fn.__name__)
    return launch(self, *arguments, **options)
GridExecutor.__call__ = counted
import fasttrain.training.engines.engine, fasttrain_kernels.multi_tensor
from pathlib import Path
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import start, stop
from fasttrain.training.finetune import finetune
from fasttrain.sampling.sample import Wanted, sample_model
from fasttrain.settings.tasks import FinetuneSettings
from tests.faults.child import WARM, WITH_DEEPSPEED, forked, warm_up
overrides, folder, places = json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
warm_up([*WARM, *(WITH_DEEPSPEED if len(places) > 1 else ())])

def train():
    settings = load_settings("digits-d2o-f", overrides, FinetuneSettings)
    world = start()
    with pretend_gpu.counted() as waits:
        finetune(settings, world)
    if world.size == 1:
        sample_model(settings.run, folder + "/grid.png", Wanted(seeds="0-3"))
    stop()

    # Copies in groups are exact, whatever their dtypes and strides.
    several = [
        torch.randn(3, 5, 2, 2).contiguous(memory_format=torch.channels_last), torch.zeros(0),
        torch.arange(7), torch.randn(4).bfloat16(), torch.tensor(2.5), torch.randn(6, 4).t(),
    ]
    fasttrain_kernels.multi_tensor.TOGETHER = 64
    on_gpu = [t.cuda() if i != 4 else t for i, t in enumerate(several)]
    with pretend_gpu.counted() as copies:
        back = fasttrain_kernels.to_host(iter(on_gpu))
    for a, b in zip(back, several, strict=True):
        assert a.device.type == "cpu" and a.is_contiguous() and a.dtype == b.dtype
        assert torch.equal(a, b) and a.untyped_storage().nbytes() == a.nbytes
    assert back[4] is on_gpu[4]

    found = {
        "device": str(world.device), "local_rank": os.environ.get("LOCAL_RANK"),
        "launches": launches, "copies": copies.total(),
        "waits": {f"{kind} {line}": count for (kind, line), count in waits.lines.items()},
    }
    with open(f"{folder}/found-{world.rank}.json", "w") as file:
        json.dump(found, file)

def be(place):
    os.environ |= place
    pretend_gpu.fresh()
    train()

children = [
    forked(Path(folder, f"rank-{rank}.log"), lambda place=place: be(place))
    for rank, place in enumerate(places)
]
ended = [child.wait(500) for child in children]
print(*(child.said() for child in children), sep="\\n")
sys.exit(any(ended))
"""
"""A process that has imported everything; its ranks are forked, and count as newly started."""


def processes(
    quick: list[str], folder: Path, *changes: str, ranks: int = 1
) -> tuple[Path, list[dict[str, Any]]]:
    """A run of `ranks` processes that see one GPU each, and what they found."""
    run = folder / "run"
    overrides = [*quick, "images=96", "r1.interval=2", *changes, f"run={run}"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    usual = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE")}
    path = os.pathsep.join([str(TESTS), *sys.path])
    several = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    places = [
        {"RANK": str(rank), "LOCAL_RANK": str(rank), **several} if ranks > 1 else {}
        for rank in range(ranks)
    ]
    ended = subprocess.run(
        [sys.executable, "-c", PROCESS, json.dumps(overrides), str(folder), json.dumps(places)],
        env=usual | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout[-4000:] + ended.stderr[-2000:]
    return run, [json.loads((folder / f"found-{r}.json").read_text()) for r in range(ranks)]


def ended_well(run: Path) -> None:
    lines = read_stats(run)
    assert [line["images"] for line in lines] == [32, 64, 96]
    assert all({"loss/generator", "gradient/generator"} <= line.keys() for line in lines)
    step = checkpoint.find(run / "checkpoints")
    assert step.images == 96
    for name in ("generator", "discriminator", "ema"):
        assert all(torch.isfinite(value.float()).all() for value in step.tensors(name).values())


@pytest.mark.slow
def test_a_run_on_one_gpu(quick: list[str], tmp_path: Path) -> None:
    """Without Triton when it is told so, statistics and checkpoints included."""
    run, (found,) = processes(quick, tmp_path, "kernels=reference")
    ended_well(run)
    assert found["device"] == "cuda:0"
    assert found["launches"] == []
    waits = found["waits"]

    def of(file: str) -> int:
        return sum(count for line, count in waits.items() if f"{file}:" in line)

    # Two checkpoints of four files and a base model, each file of two dtypes at most.
    assert of("fasttrain/system/tensors.py") == 0
    assert of("fasttrain_kernels/multi_tensor.py") <= 2 * 2 * 4 + 2 + 3  # and three reports
    # Four steps' norms for the generator and discriminator, one of R1, Adam's steps twice each.
    assert of("fasttrain/training/engines/engine.py") <= 2 * 3 + 1 + 2 * 2
    assert 0 < found["copies"] <= 5


@pytest.mark.slow
def test_two_processes_that_see_one_gpu_each(quick: list[str], tmp_path: Path) -> None:
    """As srun has it: LOCAL_RANK is 1, the only GPU is 0. Under ZeRO what is saved lies partly on
    the CPU."""
    run, found = processes(quick, tmp_path, "engine.zero_stage=1", "kernels=reference", ranks=2)
    ended_well(run)
    assert [(one["device"], one["local_rank"]) for one in found] == [("cuda:0", "0")] * 2
    for one in found:  # the norms of seven steps, and nothing a parameter
        assert sum(n for line, n in one["waits"].items() if "/deepspeed_engine.py" in line) <= 7
