"""The plan's arithmetic, and the command. Against real runs: tests/runs/test_planned.py."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from fasttrain.analysis.planning import make_plan
from fasttrain.analysis.planning.activations import Alive, generator_bytes
from fasttrain.analysis.planning.norms import groups_of, statistics_sent
from fasttrain.analysis.planning.sizes import Sizes, sizes_of
from fasttrain.analysis.planning.state import state_of, touched
from fasttrain.analysis.planning.traffic import sent
from fasttrain.analysis.speed.networks import discriminator_of, generator_of
from fasttrain.models.audit import audit_of
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from tests.runs.calling import call

ROOT = Path(__file__).parents[3]
GPU = ["precision=bfloat16", "memory_format=channels_last", "kernels=triton"]


def settings_of(recipe: str, *overrides: str) -> FinetuneSettings:
    return load_settings(recipe, overrides, FinetuneSettings)


def test_counts_are_those_of_the_audit() -> None:
    settings = settings_of("imagenet64-d2o-f")
    sizes, audit = sizes_of(generator_of(settings)), audit_of(settings).total
    assert (sizes.total, sizes.trainable) == (audit.parameters, audit.trainable)
    assert sizes.total == 295_899_267


def test_state_by_hand() -> None:
    """Two trained parameters of 6 and 5 numbers, a frozen one of 7, four processes."""
    sizes = Sizes(trained=(6, 5), frozen=(7,))
    found = {stage: state_of(sizes, stage, 4) for stage in range(4)}
    assert found[0].total == 4 * 11 + 2 * 7 + 0 + 8 * 11 + 4 * 11 + 4 * 11
    # Three of 11 numbers in a row each; of the two parameters, cut apart, 2 + 2.
    assert found[1].total == 4 * 11 + 2 * 7 + 4 * 3 + 8 * 3 + 4 * 11 + 4 * 4
    assert found[2].gradients == 4 * 6  # all of the first parameter, of which it has a half
    assert found[3].total == 4 * 4 + 2 * 2 + 4 * 4 + 8 * 4 + 4 * 4 + 4 * 4
    kept = state_of(sizes, 3, 4, kept_whole=5)
    assert kept.trained == 4 * (4 + 5)
    assert kept.frozen == 2 * 2


def test_gradients_of_stage_2_are_whole_parameters() -> None:
    assert touched((4, 4), part=4) == 4
    assert touched((5, 3), part=4) == 8
    assert touched((1, 6, 1), part=4) == 7


def test_traffic_by_hand() -> None:
    sizes = Sizes(trained=(10,), frozen=(20,))
    ring = 3 / 4
    assert sent(sizes, 0, 4) == 2 * ring * 40
    assert sent(sizes, 1, 4, backwards=2) == 3 * ring * 40
    assert sent(sizes, 2, 4, backwards=2) == 5 * ring * 40
    assert sent(sizes, 3, 4, backwards=2, passes=3) == ring * (80 + 3 * (40 + 40))
    assert sent(sizes, 3, 4, passes=3, kept_whole=10) == ring * (40 + 3 * 40 + 40)
    assert sent(sizes, 0, 1) == 0


def test_activations_are_those_that_the_benchmark_counts() -> None:
    """Its networks are the published ones."""
    counted = json.loads((ROOT / "benchmarks" / "results" / "memory.json").read_text())
    for recipe, network in (("imagenet64-d2o-f", "adm-64"), ("cifar10-uncond-d2o-f", "ncsnpp-32")):
        expected = counted["bytes_per_image"][network]["ours"]
        assert generator_bytes(settings_of(recipe, *GPU)) == pytest.approx(expected, rel=0.01)


def test_the_recipes_own_norm_group_is_planned_however_many_processes_share_it() -> None:
    plan = make_plan(settings_of("digits-d2o-f"), gpus=8)
    assert (plan.micro_batch, plan.norm_group, plan.peers) == (8, 16, 2)
    said = "batch norm is over 16 images, 8 of each of 2 processes, which exchange their"
    assert plan.notes[0].startswith(said)
    assert plan.notes[0] in plan.table()
    # Two float32 of every channel and process, in seven all-reduces an iteration, rings of two.
    channels = (64 + 128 + 256) + (128 + 256) + 256
    settings = settings_of("digits-d2o-f", "r1.interval=5")
    found = statistics_sent(settings, discriminator_of(settings), 2)
    assert found == 4 * 2 * 2 * channels * (6 + 5 / 5)
    assert statistics_sent(settings, discriminator_of(settings), 1) == 0


def test_groups_of_the_recipe_on_more_and_more_processes() -> None:
    """ImageNet-64: batch norm over 128 of 512 images."""
    settings = settings_of("imagenet64-d2o-f")
    peers = {world: groups_of(settings, world)[0] for world in (1, 4, 8, 16, 32, 64, 512)}
    assert peers == {1: 1, 4: 1, 8: 2, 16: 4, 32: 8, 64: 16, 512: 128}
    assert not groups_of(settings, 4)[1]
    assert groups_of(settings, 32)[1][0].startswith(
        "batch norm is over 128 images, 16 of each of 8"
    )
    settings = settings_of("digits-d2o-f", "batch=96", "discriminator.norm_group=32")
    with pytest.raises(UserError, match="does not fit 4 processes with 24 images each: use 1, 3, "):
        groups_of(settings, 4)


def test_more_is_sharded_from_stage_to_stage() -> None:
    sharded = "engine.deepspeed={zero_optimization: {stage3_param_persistence_threshold: 0}}"
    plan = make_plan(settings_of("digits-d2o-f", sharded), gpus=4)
    totals = [plan.stages[stage].generator.total for stage in range(4)]
    assert totals == sorted(totals, reverse=True)
    everything = make_plan(settings_of("digits-d2o-f", "freeze=none"), gpus=4)
    # What is frozen is not written again: neither weight, nor moments, nor average.
    more = everything.trainable - plan.trainable
    assert everything.checkpoint == plan.checkpoint + 16 * more
    assert everything.base == plan.base


def test_time_from_a_profile(tmp_path: Path) -> None:
    settings = settings_of("digits-d2o-f", "images=7200000")
    path, small = tmp_path / "profile.json", "batch=16"
    profile = {
        "machine": {"device": "NVIDIA H200", "capability": "9.0"},
        "configuration": {"batch": 16},
        "settings": settings_of("digits-d2o-f", small, "seed=3").model_dump(mode="json"),
        "phases": {"images_per_second": 250},
    }
    path.write_text(json.dumps(profile))
    plan = make_plan(settings, gpus=4, profile=path, gpu="h200", price=3)
    assert plan.hours == pytest.approx(2)  # measured, where both are there
    assert plan.cost == pytest.approx(24)
    said = "time (measured on NVIDIA H200): 1,000 images a second, 2.0 hours, 8 GPU-hours, 24 at 3"
    assert said in plan.table()
    alone = make_plan(settings, profile=path)
    assert "on NVIDIA H200 at micro-batches of 16, here they are 64" in alone.table()
    for change, differs in (
        ("network.num_blocks=1", "network.num_blocks=2, here 1"),
        ("freeze=none", "freeze=1, here none"),
        ("r1.gamma=0", "r1.gamma=True, here False"),
        ("discriminator.channels=8", "discriminator.channels=64, here 8"),
        ("precision=float32", "precision=auto, here float32"),
    ):
        with pytest.raises(UserError, match=differs):
            make_plan(settings_of("digits-d2o-f", change), profile=path)
    path.write_text(json.dumps(profile | {"machine": {"device": "AMD EPYC"}}))
    with pytest.raises(UserError, match="is of a CPU, AMD EPYC: run `fasttrain profile`"):
        make_plan(settings, profile=path)
    path.write_text("{}")
    with pytest.raises(UserError, match="is not a profile"):
        make_plan(settings, profile=path)


def test_the_command(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    out = tmp_path / "plan.json"
    status, said, error = call(capsys, "plan", "digits-d2o-f", "--gpus", 2, "--json", out)
    assert status == 0, error
    assert "2 processes (2 GPUs on each of 1 nodes)" in said
    assert "time (counted for H200 SXM, not measured" in said
    found = json.loads(out.read_text())
    moments = found["stages"]["1"]["generator"]["moments"]
    assert moments == 8 * -(-found["trainable"] // 2)
    assert f"{moments / 1e6:,.1f}" in said
    status, _, error = call(capsys, "plan", "digits-d2o-f", "--gpus", 7)
    assert status == 2
    assert "does not divide over 7 processes" in error


def test_alive_counts_what_is_held_and_nothing_else() -> None:
    with Alive() as alive:
        kept = torch.ones(1000)
        view = kept[:10]
        torch.ones(500)  # gone at once
        other = kept * 2
    assert alive.bytes() == 8000
    del other, view
    assert alive.bytes() == 4000
