"""The speed model's iteration: what settings change in it, and its place in plan and profile."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from fasttrain.analysis.planning import make_plan
from fasttrain.analysis.planning.activations import discriminator_bytes
from fasttrain.analysis.profiling import table
from fasttrain.analysis.profiling.expectation import MEASURED, beside
from fasttrain.analysis.speed import costs
from fasttrain.analysis.speed.model import expect
from fasttrain.analysis.speed.networks import discriminator_of
from fasttrain.analysis.speed.rates import GPUS, gpu_named
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from tests.tiny import DISCRIMINATOR, NETWORK

ROOT = Path(__file__).parents[3]
H200 = GPUS["h200"]


@cache
def settings_of(*overrides: str) -> FinetuneSettings:
    small = (*NETWORK, *DISCRIMINATOR, "discriminator.norm_group=8", "batch=8")
    return load_settings("digits-d2o-f", (*small, *overrides), FinetuneSettings)


@cache
def model_of(*overrides: str) -> dict[str, Any]:
    return expect(settings_of(*overrides), H200, 8)


def test_penalties_in_fewer_bits_take_fewer_bytes_and_faster_products() -> None:
    exact, tf32, low = (
        model_of(*(() if name == "float32" else (f"r1.features={name}",)))["phases"]
        for name in ("float32", "tf32", "bfloat16")
    )
    assert exact.keys() == tf32.keys() == low.keys()
    for name in exact.keys() - {"exact R1 forward", "exact R1 backward"}:
        assert exact[name] == tf32[name] == low[name]
    r1 = "exact R1 forward"
    assert low[r1]["bytes"] < tf32[r1]["bytes"]
    assert tf32[r1]["floor"] < exact[r1]["floor"]
    assert exact[r1]["times"] == 1 / settings_of().r1.interval


def test_graphs_spare_the_cpu_but_in_exact_penalties() -> None:
    plain, graphs = model_of(), model_of("graphs=true")
    for name, row in graphs["phases"].items():
        assert row["expected"] == plain["phases"][name]["expected"]
        assert (row["cpu"] < plain["phases"][name]["cpu"]) == (not name.startswith("exact"))
    # Passes this small take the CPU longer than the GPU.
    assert graphs["iteration"]["seconds"] < plain["iteration"]["seconds"]
    assert plain["iteration"]["seconds"] >= plain["iteration"]["expected"]


def test_reused_fakes_are_not_generated_twice() -> None:
    gone = model_of()["phases"].keys() - model_of("reuse_fakes=true")["phases"].keys()
    assert gone == {"generator forward, without graph"}


def test_a_plan_without_a_measurement_has_the_models_time_and_its_cost() -> None:
    settings = settings_of("images=80000")
    seconds = model_of()["iteration"]["seconds"]
    plan = make_plan(settings, gpu="h200", price=4.0)
    assert plan.hours == pytest.approx(10_000 * seconds / 3600, rel=1e-3)
    assert plan.cost == pytest.approx(4 * plan.hours)
    assert "time (counted for H200 SXM, not measured" in plan.table()
    assert "at 4 an hour" in plan.table()
    with pytest.raises(UserError, match="knows h200, h100, a100, b200"):
        make_plan(settings, gpu="h2000")


def test_a_plan_knows_what_graphs_hold_and_where_they_cannot_be() -> None:
    graphs = make_plan(settings_of("graphs=true"))
    plain, kept = replace(graphs, graphs=False), graphs.activations
    assert graphs.memory(0) - plain.memory(0) == sum(kept.values()) - max(kept.values())
    assert plain.kept[1] == max(kept.values())
    assert "all, in CUDA graphs" in graphs.table()
    with pytest.raises(UserError, match="graphs: processes share groups"):
        make_plan(settings_of("graphs=true"), gpus=2)
    low = settings_of("r1.features=bfloat16")
    counted = discriminator_bytes(low, discriminator_of(low), torch.bfloat16)
    assert 0 < graphs.micro_batch * counted["r1"] < kept["exact R1"]


def test_the_profile_shows_the_model_beside_its_measurement() -> None:
    model = model_of()
    places = {place for phase in model["phases"] for place in MEASURED[phase]}
    rows = [{"step": step, "phase": phase, "amortised_ms": 2.0} for step, phase in sorted(places)]
    found = beside(model, {"rows": rows, "measured_ms": 20.0})
    title = "generator step: backward"
    backward = next(row for row in found["rows"] if row["title"] == title)
    parts = [model["phases"][f"{name} backward"]["floor"] for name in (
        "generator", "discriminator, generator's step")]  # fmt: skip
    assert backward["floor_ms"] == pytest.approx(1e3 * sum(parts))
    assert sum(row["measured_ms"] for row in found["rows"]) == 2.0 * len(places)
    out = io.StringIO()
    table._model({"model": {"gpu": "H200 SXM", **found}}, Console(file=out, width=120))
    assert title in out.getvalue()
    assert f"{20.0 / found['iteration']['expected_ms']:.2f}x" in out.getvalue()
    table._model({"model": None}, Console(file=out))


def test_gpus_by_the_names_that_cuda_has() -> None:
    assert gpu_named("NVIDIA H200") is H200
    assert gpu_named("NVIDIA H100 80GB HBM3") is GPUS["h100"]
    assert gpu_named("NVIDIA GeForce RTX 4090") is None


def test_the_package_has_the_counts_of_the_committed_table() -> None:
    rows = json.loads((ROOT / "benchmarks" / "results" / "aot.json").read_text())
    counts = {(row["arch"], row["key"]): row["issued"] for row in rows if row["issued"]}
    table = json.loads(costs.TABLE.read_text())
    assert {(a, k): v for a, keys in table.items() for k, v in keys.items()} == counts
