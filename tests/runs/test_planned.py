"""`fasttrain plan` against what two processes really hold, send and write, at every ZeRO stage."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from torch import Tensor

from fasttrain.analysis.planning import Plan, make_plan
from fasttrain.checkpoints import checkpoint
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import World
from fasttrain.training.finetune import finetune
from fasttrain.training.run.run import Run
from tests.ranks import on_ranks

SHARDED = (
    "engine.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0, "
    "stage3_max_live_parameters: 0, stage3_max_reuse_distance: 0}}"
)
"""All weights, always: this network is smaller than what stage 3 keeps gathered by default."""
CASES = [(stage, micro) for stage in range(4) for micro in (16, 8)]


class Sent:
    """Counts the bytes that torch.distributed sends from now on in this process."""

    def __init__(self) -> None:
        self.bytes = 0.0
        half = 1 / 2  # (W - 1) / W
        self.count("all_reduce", lambda a, k: a[0] if a else k["tensor"], 2 * half)
        for name in ("all_gather_into_tensor", "all_gather_single"):
            self.count(name, lambda a, k: a[0] if a else k["output_tensor"], half)
        for name in ("reduce_scatter_tensor", "reduce_scatter_single"):
            self.count(name, lambda a, k: a[1] if len(a) > 1 else k["input"], half)
        for name in ("reduce", "broadcast", "all_to_all_single"):
            self.count(name, lambda a, k: a[0] if a else k["tensor"], half)

    def count(self, name: str, whole: Callable[[Any, Any], Tensor], factor: float) -> None:
        if not hasattr(dist, name):
            return
        original = getattr(dist, name)

        def counted(*args: Any, **kwargs: Any) -> Any:
            tensor = whole(args, kwargs)
            self.bytes += factor * tensor.numel() * tensor.element_size()
            return original(*args, **kwargs)

        setattr(dist, name, counted)


def train_all(cells: list[list[str]], out: Path, world: World) -> None:
    """Write what the main process sends in the last iteration of each cell's run."""
    sent, advance, at, found = Sent(), Run.advance, [], []

    def noted(run: Run, images: int) -> None:
        at.append(sent.bytes)
        advance(run, images)

    Run.advance = noted  # type: ignore[method-assign]
    for overrides in cells:
        at.clear()
        finetune(load_settings("digits-d2o-f", overrides, FinetuneSettings), world)
        found.append(at[2] - at[1])
    if world.is_main:
        out.write_text(json.dumps(found))


@pytest.fixture(scope="module")
def ran(
    quick: list[str], tmp_path_factory: pytest.TempPathFactory
) -> dict[tuple[int, int], tuple[Path, Plan, float]]:
    """By stage and micro-batch: the run, its plan, and bytes sent in an iteration."""
    folder = tmp_path_factory.mktemp("planned")
    cells = {
        (stage, micro): [
            *quick,
            *(SHARDED, f"engine.zero_stage={stage}", f"micro_batch={micro}", "images=96"),
            *("precision=bfloat16", "r1.gamma=0", "report_every=64", "checkpoint.every=96"),
            *("evaluate.every=null", f"run={folder}/{stage}-{micro}"),
        ]
        for stage, micro in CASES
    }
    out = folder / "sent.json"
    on_ranks(2, partial(train_all, list(cells.values()), out), folder)
    found = {}
    for (case, overrides), sent in zip(cells.items(), json.loads(out.read_text()), strict=True):
        settings = load_settings("digits-d2o-f", overrides, FinetuneSettings)
        found[case] = (settings.run, make_plan(settings, gpus=2, device="cpu"), sent)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_hold_what_was_planned(ran: dict[Any, Any], case: tuple[int, int]) -> None:
    run, plan, _ = ran[case]
    ranks = json.loads((run / "memory.json").read_text())
    assert len(ranks) == 2
    for part in ("generator", "discriminator"):
        planned = asdict(getattr(plan.stages[case[0]], part))
        average = planned.pop("average")
        assert max(rank["average"] for rank in ranks) == pytest.approx(
            average if part == "generator" else plan.stages[case[0]].generator.average, rel=0.02
        )
        for kind, expected in planned.items():
            most = max(rank[part][kind] for rank in ranks)
            assert most == pytest.approx(expected, rel=0.02), (part, kind)


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_two_processes_send_what_was_planned(ran: dict[Any, Any], case: tuple[int, int]) -> None:
    _, plan, sent = ran[case]
    assert sent == pytest.approx(plan.stages[case[0]].sent, rel=0.001)


@pytest.mark.slow
def test_a_checkpoint_is_as_large_as_planned(ran: dict[Any, Any]) -> None:
    run, plan, _ = ran[2, 16]
    step = checkpoint.find(run / "checkpoints")
    written = sum(map(size_of_tensors, step.path.glob("*.safetensors")))
    assert written == pytest.approx(plan.checkpoint, rel=0.03)
    assert size_of_tensors(run / "base.safetensors") == pytest.approx(plan.base, rel=0.03)


def size_of_tensors(path: Path) -> int:
    """Without their names and shapes, whose length the file begins with."""
    with path.open("rb") as file:
        return path.stat().st_size - 8 - int.from_bytes(file.read(8), "little")
