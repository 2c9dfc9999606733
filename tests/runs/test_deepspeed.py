"""Two ranks under DeepSpeed compute what the local engine computes with the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from fasttrain import checkpoint
from fasttrain.config import FinetuneSettings, load_settings
from fasttrain.distributed import start
from fasttrain.finetune import finetune
from fasttrain.metrics import read_stats

LOSSES = ("loss/generator", "loss/discriminator", "loss/r1", "logits/real", "logits/fake")

CELLS = """
import json, sys
from fasttrain.config import FinetuneSettings, load_settings
from fasttrain.distributed import start, stop
from fasttrain.finetune import finetune
world = start()
for overrides in json.loads(sys.argv[1]):
    finetune(load_settings("digits-d2o-f", overrides, FinetuneSettings), world)
stop()
"""


def two_ranks(cells: list[list[str]], folder: Path) -> None:
    """One launched pair of processes runs all the cells, one after the other."""
    script = folder / "cells.py"
    script.write_text(CELLS)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--nproc-per-node=2",
            "--master-port=29731",
            str(script),
            json.dumps(cells),
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"},
        capture_output=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode()[-4000:]


def losses(run: Path) -> list[dict[str, float]]:
    return [{k: v for k, v in line.items() if k in LOSSES} for line in read_stats(run)]


def assert_close(ours: list[dict[str, float]], oracle: list[dict[str, float]]) -> None:
    assert len(ours) == len(oracle) == 10
    for line, expected in zip(ours, oracle, strict=True):
        assert line.keys() == expected.keys()
        for name, value in expected.items():
            assert line[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
    assert any("loss/r1" in line for line in oracle)


@pytest.mark.slow
def test_two_ranks_equal_the_local_engine(quick: list[str], tmp_path: Path) -> None:
    """Over ZeRO 0 and 1 and accumulation 1 and 2, over a change of engine at a resume, and
    through the checkpoint of one read by the other."""
    oracle = tmp_path / "local"
    finetune(load_settings("digits-d2o-f", [*quick, f"run={oracle}"], FinetuneSettings), start())
    cells = {
        f"zero{stage}-accumulate{steps}": [f"engine.zero_stage={stage}", *micro]
        for stage in (0, 1)
        for steps, micro in ((1, []), (2, ["micro_batch=8"]))
    }
    runs = {name: tmp_path / name for name in cells}
    half = tmp_path / "half"
    finetune(
        load_settings("digits-d2o-f", [*quick, "images=160", f"run={half}"], FinetuneSettings),
        start(),
    )
    two_ranks(
        [
            *([*quick, *change, f"run={runs[name]}"] for name, change in cells.items()),
            [*quick, f"run={half}"],
        ],
        tmp_path,
    )
    for run in (*runs.values(), half):
        assert_close(losses(run), losses(oracle))
    ours = checkpoint.find(runs["zero1-accumulate1"] / "checkpoints")
    theirs = checkpoint.find(oracle / "checkpoints")
    for name in ("generator", "discriminator", "ema", "projector"):
        a, b = ours.tensors(name), theirs.tensors(name)
        assert a.keys() == b.keys()
        assert all(a[key].shape == b[key].shape for key in a)
    assert torch.equal(ours.tensors("generator")["steps"], theirs.tensors("generator")["steps"])
