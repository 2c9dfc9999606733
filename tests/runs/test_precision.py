"""bfloat16, channels_last and recomputed norms in whole runs: what changes, and what must not."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.checkpoints.saved import SavedRun
from fasttrain.checkpoints.stats import read_stats
from fasttrain.models import precision
from fasttrain.models.build import activation_dtype, memory_format
from fasttrain.models.load import load_model
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.cpu_rate import Gain
from fasttrain.system.processes import ONE_PROCESS, start, stop
from fasttrain.training.finetune import finetune
from fasttrain.training.run.precision import in_precision
from tests.faults.child import forked, free_port
from tests.runs.conftest import UNJUDGED

LOW = ["precision=bfloat16", "memory_format=channels_last"]


def run(quick: list[str], path: Path, *changes: str) -> list[dict[str, float]]:
    """The losses and logits of a short run, line by line."""
    overrides = [*quick, UNJUDGED, *changes, f"run={path}"]
    settings = load_settings("digits-d2o-f", overrides, FinetuneSettings)
    try:
        finetune(settings, start(force_group=settings.engine.kind == "deepspeed"))
    finally:
        stop()
    return [
        {k: v for k, v in line.items() if k.startswith(("images", "loss/", "logits/"))}
        for line in read_stats(path)
    ]


def test_quick_runs_are_in_float32_on_any_device(quick: list[str]) -> None:
    """The tolerances of all these tests are for that."""
    settings = load_settings("digits-d2o-f", quick, FinetuneSettings)
    for asked in (settings, settings.discriminator):
        assert activation_dtype(asked, torch.device("cuda")) == torch.float32
    assert memory_format(settings, torch.device("cuda")) == torch.contiguous_format


def test_a_run_in_bfloat16(quick: list[str], tmp_path: Path) -> None:
    low = run(quick, tmp_path / "low", *LOW, "images=128")
    full = run(quick, tmp_path / "full", "images=128")
    assert [line["images"] for line in low] == [32, 64, 96, 128]
    for ours, exact in zip(low, full, strict=True):
        assert ours["loss/generator"] != exact["loss/generator"]
        assert ours["loss/generator"] == pytest.approx(exact["loss/generator"], rel=0.05)
        assert ours["loss/discriminator"] == pytest.approx(exact["loss/discriminator"], rel=0.05)

    saved = checkpoint.find(tmp_path / "low" / "checkpoints").tensors("generator")
    weights = {k: v for k, v in saved.items() if k.startswith("module/")}
    kept = {k.removeprefix("exp_avg/") for k in saved if k.startswith("exp_avg/")}
    assert kept
    for name, value in weights.items():
        if value.is_floating_point() and not name.endswith("resample_filter"):
            trains = name.removeprefix("module/") in kept
            assert value.dtype == (torch.float32 if trains else torch.bfloat16), name
    network, _ = load_model(tmp_path / "low")
    assert {p.dtype for p in network.parameters()} == {torch.float32}

    # Cut and resumed, and under DeepSpeed: the very same numbers.
    assert run(quick, tmp_path / "cut", *LOW, "images=64") == low[:2]
    assert run(quick, tmp_path / "cut", *LOW, "images=128") == low
    assert run(quick, tmp_path / "zero", *LOW, "images=128", "engine.kind=deepspeed") == low


def test_recomputed_norms_give_the_same_numbers(quick: list[str], tmp_path: Path) -> None:
    kept = run(quick, tmp_path / "kept", "freeze=none", "images=96")
    again = run(quick, tmp_path / "again", "freeze=none", "images=96", "recompute_norms=true")
    assert again == kept


@pytest.mark.parametrize("wins", [True, False])
def test_auto_is_measured_once_and_kept(
    wins: bool,
    quick: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    gains = [Gain(2.0, 1.0 if wins else 4.0)]
    monkeypatch.setattr("fasttrain.models.precision.bfloat16_gain", gains.pop)
    auto = ["precision=auto", "discriminator.precision=auto", "memory_format=auto"]
    dtype = "bfloat16" if wins else "float32"
    found = run(quick, tmp_path / "auto", *auto, "images=64")
    said = capfd.readouterr().err
    assert f"precision {dtype}: bfloat16 {2 if wins else 0.5:.1f} times" in said
    assert f"CPU, 1 thread; {dtype}; 1 process" in said  # what computes, not what a GPU would take
    found = run(quick, tmp_path / "auto", *auto, "images=128")  # nothing is left to measure
    exact = [f"precision={dtype}", f"discriminator.precision={dtype}", "memory_format=auto"]
    assert found == run(quick, tmp_path / "exact", *exact, "images=128")
    saved = SavedRun.open(tmp_path / "auto")
    assert saved.state["precision"] == saved.state["base"]["frozen"] == dtype
    assert saved.settings.precision == "auto"


def decide(rank: int, port: int, settings: FinetuneSettings, found: Path) -> None:
    """A process of two; only rank 0 may measure."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    precision.bfloat16_gain = [lambda: Gain(2.0, 1.0), lambda: Gain(1.0, 2.0)][rank]
    opened: Any = SimpleNamespace(world=start(), start=None, precision=None)
    decided = in_precision(settings, opened)
    found.write_text(f"{decided.precision} {decided.discriminator.precision} {opened.precision}")
    stop()


def test_processes_take_the_decision_of_rank_0(quick: list[str], tmp_path: Path) -> None:
    auto = ["precision=auto", "discriminator.precision=auto", f"run={tmp_path / 'run'}"]
    settings = load_settings("digits-d2o-f", [*quick, *auto], FinetuneSettings)
    port, found = free_port(), [tmp_path / f"found-{rank}" for rank in (0, 1)]
    children = [
        forked(tmp_path / f"{rank}.log", partial(decide, rank, port, settings, found[rank]))
        for rank in (0, 1)
    ]
    for child in children:
        assert child.wait(120) == 0, child.said()
    assert [path.read_text() for path in found] == ["bfloat16 bfloat16 bfloat16"] * 2


def test_a_run_of_before_goes_on_in_float32(quick: list[str], tmp_path: Path) -> None:
    settings = load_settings(
        "digits-d2o-f", [*quick, "precision=auto", f"run={tmp_path / 'old'}"], FinetuneSettings
    )
    step = SimpleNamespace(state={"images": 32})
    opened: Any = SimpleNamespace(world=ONE_PROCESS, start=step, precision=None)
    assert in_precision(settings, opened).precision == opened.precision == "float32"
