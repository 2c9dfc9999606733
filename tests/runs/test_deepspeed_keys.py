"""Every key of DeepSpeed's JSON that is passed on changes nothing, at every ZeRO stage where it
counts, in a run that is stopped and resumed."""

from __future__ import annotations

import gc
import json
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.models.build import new_network
from fasttrain.settings import EngineSettings, NetworkSettings, OptimizerSettings
from fasttrain.settings.deepspeed_keys import PASSED_ON, PASSED_ON_ZERO
from fasttrain.system.processes import World
from fasttrain.training.engines.engine import Engine
from fasttrain.training.engines.make import make_engine
from tests.ranks import on_ranks

TELLING = {
    "comms_logger": {"enabled": True, "verbose": False, "prof_all": True, "debug": False},
    "memory_breakdown": True,
    "steps_per_print": 1,
    "dump_state": True,
    "tensorboard": {"enabled": True, "output_path": "board", "job_name": "keys"},
    "csv_monitor": {"enabled": True, "output_path": "csv", "job_name": "keys"},
}
"""All of `PASSED_ON`, away from DeepSpeed's own values."""
ALWAYS = {
    "allgather_partitions": False,
    "allgather_bucket_size": 1024,
    "reduce_scatter": False,
    "reduce_bucket_size": 1024,
    "sub_group_size": 1000,
    "use_multi_rank_bucket_allreduce": False,
    "log_trace_cache_warnings": True,
}
OVERLAP = {"overlap_comm": True}
THIRD = {
    "stage3_prefetch_bucket_size": 0,
    "stage3_param_persistence_threshold": 100,
    "stage3_model_persistence_threshold": 1000,
    "stage3_max_live_parameters": 0,
    "stage3_max_reuse_distance": 0,
    "stage3_use_all_reduce_for_fetch_params": True,
    "stage3_allgather_sequential": True,
}
SHARD_ALL = {"stage3_param_persistence_threshold": 0}

NETWORK = NetworkSettings(
    model_type="SongUNet",
    img_resolution=8,
    img_channels=1,
    label_dim=4,
    model_channels=8,
    channel_mult=[1, 2],
    num_blocks=1,
    attn_resolutions=[4],
    dropout=0.0,
)


def make(stage: int, keys: dict[str, Any], world: World) -> Engine:
    torch.manual_seed(0)
    network: Any = new_network("one_step", NETWORK)
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, std=0.1)
        parameter.requires_grad_("conv0" not in name)
    settings = EngineSettings.model_construct(kind="deepspeed", zero_stage=stage, deepspeed=keys)
    return make_engine(network, OptimizerSettings(rate=1e-2, eps=1e-2), settings, world)


def train(engine: Engine, iterations: range, world: World) -> dict[str, Tensor]:
    for i in iterations:
        for part in range(2):
            draw = torch.Generator().manual_seed(100 * i + 10 * part + world.rank)
            z = 80 * torch.randn(2, 1, 8, 8, generator=draw)
            loss = engine(z, torch.full((2,), 80.0), torch.eye(4)[:2]).square().mean()
            engine.backward(loss / 2)
        assert engine.step()
    return {name: value.clone() for name, value in engine.state_dict().items()}


def compare(
    cells: list[tuple[str, int, dict[str, Any], dict[str, Any]]], out: Path, world: World
) -> None:
    """Write for each cell how many tensors were compared and which differ."""
    rows = []
    gc.freeze()  # a breakdown of memory collects garbage at every step
    whole: dict[int, dict[str, Tensor]] = {}
    for name, stage, plain, keys in cells:
        if stage not in whole:
            engine = make(stage, plain, world)
            early = train(engine, range(2), world)
            whole[stage] = train(engine, range(2, 4), world)
            if world.is_main:
                moved = [n for n, v in early.items() if not torch.equal(v, whole[stage][n])]
                assert "steps" in moved, moved
                assert len(moved) > 30, moved
        half = world.from_main(train(make(stage, keys, world), range(2), world))
        engine = make(stage, keys, world)
        engine.load_state_dict(half)
        found = train(engine, range(2, 4), world)
        different = [n for n, value in whole[stage].items() if not torch.equal(value, found[n])]
        rows.append((name, len(found), different[:3]))
    if world.is_main:
        out.write_text(json.dumps(rows))


def resumed(cells: list[tuple[str, int, dict[str, Any]]], folder: Path) -> dict[str, list[str]]:
    """{cell: tensors that differ from those of an unbroken run without its keys}, all cells by one
    pair of processes."""
    given = []
    for name, stage, keys in cells:
        plain = {"zero_optimization": SHARD_ALL if stage == 3 else {}}
        zero = plain["zero_optimization"] | keys.get("zero_optimization", {})
        given.append([name, stage, plain, {**keys, "zero_optimization": zero}])
    here = Path.cwd()
    os.chdir(folder)  # some keys write beside the process
    try:
        on_ranks(2, partial(compare, given, folder / "rows.json"), folder)
    finally:
        os.chdir(here)
    rows = json.loads((folder / "rows.json").read_text())
    return {name: different for name, count, different in rows if count > 90}


@pytest.mark.slow
def test_every_key_that_is_passed_on_changes_nothing(tmp_path: Path) -> None:
    """Independent keys together: a cell that fails is taken apart by hand. And one that is not
    passed on any more shows that such a change is seen."""
    assert TELLING.keys() == PASSED_ON
    assert {*ALWAYS, *OVERLAP, *THIRD} == PASSED_ON_ZERO
    cells: list[tuple[str, int, dict[str, Any]]] = []
    for stage in range(4):
        zero = ALWAYS | (THIRD if stage == 3 else {})
        cells.append((f"all{stage}", stage, {**TELLING, "zero_optimization": zero}))
        if stage >= 2:
            cells.append((f"overlap{stage}", stage, {"zero_optimization": OVERLAP}))
    cells.append(("round robin", 1, {"zero_optimization": {"round_robin_gradients": True}}))
    found = resumed(cells, tmp_path)
    assert found.pop("round robin")
    assert found == {name: [] for name, *_ in cells[:-1]}
    assert (tmp_path / "csv" / "keys").is_dir()
