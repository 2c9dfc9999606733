"""`fasttrain plan` against what two processes really hold, send and write, at every ZeRO stage."""

from __future__ import annotations

import json
from collections import Counter
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


def count_sent(sent: Counter[str]) -> None:
    """From now on, in this process, add to `sent["bytes"]` what each collective sends."""

    def count(name: str, whole: Callable[[Any, Any], Tensor], factor: float) -> None:
        original = getattr(dist, name, None)
        if original is None:
            return

        def counted(*args: Any, **kwargs: Any) -> Any:
            tensor = whole(args, kwargs)
            sent["bytes"] += round(factor * tensor.numel() * tensor.element_size())
            return original(*args, **kwargs)

        setattr(dist, name, counted)

    half = 1 / 2  # (W - 1) / W
    count("all_reduce", lambda a, k: a[0] if a else k["tensor"], 2 * half)
    for name in ("all_gather_into_tensor", "all_gather_single"):
        count(name, lambda a, k: a[0] if a else k["output_tensor"], half)
    for name in ("reduce_scatter_tensor", "reduce_scatter_single"):
        count(name, lambda a, k: a[1] if len(a) > 1 else k["input"], half)
    for name in ("reduce", "broadcast", "all_to_all_single"):
        count(name, lambda a, k: a[0] if a else k["tensor"], half)


def tune_and_count(cells: list[list[str]], out: Path, world: World) -> None:
    """Write the bytes that the second iteration of each cell sends."""
    sent: Counter[str] = Counter()
    count_sent(sent)
    advance, at = Run.advance, []

    def noted(run: Run, images: int) -> Any:
        at.append(sent["bytes"])
        return advance(run, images)

    Run.advance = noted  # type: ignore[method-assign]
    found = []
    for overrides in cells:
        at.clear()
        finetune(load_settings("digits-d2o-f", overrides, FinetuneSettings), world)
        found.append(at[2] - at[1])
    if world.is_main:
        out.write_text(json.dumps(found))


SHARDED = (
    "engine.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0, "
    "stage3_max_live_parameters: 0, stage3_max_reuse_distance: 0}}"
)
"""All weights, always: this network is smaller than what stage 3 keeps gathered by default."""
CASES = [(stage, micro) for stage in range(4) for micro in (16, 8)]


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
            f"run={folder}/{stage}-{micro}",
        ]
        for stage, micro in CASES
    }
    out = folder / "sent.json"
    on_ranks(2, partial(tune_and_count, list(cells.values()), out), folder)
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
    written = sum(path.stat().st_size for path in step.path.glob("*.safetensors"))
    assert written == pytest.approx(plan.checkpoint, rel=0.03)  # with the names of the tensors
    assert (run / "base.safetensors").stat().st_size == pytest.approx(plan.base, rel=0.03)
