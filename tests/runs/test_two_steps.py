"""Two-step generators, from settings to images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain.analysis.planning.activations import generator_bytes
from fasttrain.checkpoints.stats import read_stats
from fasttrain.models.build import new_network
from fasttrain.models.load import load_model
from fasttrain.sampling.generate import generate
from fasttrain.sampling.sampler import Sampler
from fasttrain.sampling.solvers import two_step
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.system.processes import start
from fasttrain.training.finetune import finetune
from tests.runs.conftest import UNJUDGED
from tests.runs.test_deepspeed import SHARD_ALL, SMOOTH, two_ranks

TWO = ["sigma_mid=0.8", "images=96", UNJUDGED]


def tuned(quick: list[str], run: Path, *changes: str) -> Path:
    finetune(
        load_settings("digits-d2o-f", [*quick, *TWO, *changes, f"run={run}"], FinetuneSettings),
        start(),
    )
    return run


@pytest.fixture(scope="module")
def generator(quick: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tuned(quick, tmp_path_factory.mktemp("two") / "run")


def test_a_two_step_generator_is_trained_and_used_as_one(
    generator: Path, quick: list[str], tmp_path: Path
) -> None:
    network, info = load_model(generator)
    assert (info.sigma, info.sigma_mid) == (80.0, 0.8)
    made = generate(Sampler.of(info), network, range(8))
    assert torch.equal(made, generate(Sampler(sigma_mid=0.8), network, range(8)))
    assert (made - generate(Sampler(), network, range(8))).abs().max() > 0.01
    one = tuned(quick, tmp_path / "one", "sigma_mid=null")  # another training altogether
    last = tuned(quick, tmp_path / "last", "gradient_through=last")
    first = [read_stats(run)[0] for run in (generator, one, last)]
    assert first[0]["loss/generator"] != pytest.approx(first[1]["loss/generator"], rel=1e-4)
    # The same images, before anything is learnt; another gradient.
    assert first[0]["loss/generator"] == first[2]["loss/generator"]
    assert first[0]["gradient/generator"] != pytest.approx(first[2]["gradient/generator"], rel=1e-3)


def test_parts_of_a_batch_add_up(generator: Path, quick: list[str], tmp_path: Path) -> None:
    parts = tuned(quick, tmp_path / "parts", "micro_batch=16")
    for ours, whole in zip(read_stats(parts), read_stats(generator), strict=True):
        assert ours["loss/generator"] == pytest.approx(whole["loss/generator"], rel=1e-4)


def tiny() -> tuple[Any, torch.Tensor]:
    torch.manual_seed(0)
    settings = load_settings("digits-d2o-f", ["network.model_channels=8"], FinetuneSettings)
    network = new_network("one_step", settings.network)
    for parameter in network.parameters():  # outputs that are zero say nothing
        torch.nn.init.normal_(parameter, std=0.1)
    return network.eval(), torch.randn(3, 1, 8, 8)


def test_gradients_through_the_last_step_are_those_of_a_given_middle() -> None:
    network, z = tiny()
    labels = torch.eye(10)[:3]
    with torch.no_grad():
        x0 = network(80 * z, 80.0, labels)
        middle = x0 + 0.8 / 80 * (80 * z - x0)
    weights = list(network.parameters())
    expected = torch.autograd.grad(network(middle, 0.8, labels).square().sum(), weights)
    found = {
        through: torch.autograd.grad(
            two_step(network, z, labels, through=through).square().sum(), weights
        )
        for through in ("last", "both")
    }
    for a, b in zip(found["last"], expected, strict=True):
        torch.testing.assert_close(a, b)
    # The rest is what comes through the first step: that of the second one's input.
    middle.requires_grad_()
    (into,) = torch.autograd.grad(network(middle, 0.8, labels).square().sum(), middle)
    first = torch.autograd.grad((0.99 * into * network(80 * z, 80.0, labels)).sum(), weights)
    for both, a, b in zip(found["both"], expected, first, strict=True):
        torch.testing.assert_close(both, a + b, atol=1e-4 * float(both.abs().max()), rtol=1e-3)


def test_the_plan_knows_of_the_second_step() -> None:
    counts = [
        generator_bytes(load_settings("digits-d2o-f", changes, FinetuneSettings))
        for changes in ([], ["sigma_mid=0.8"], ["sigma_mid=0.8", "gradient_through=last"])
    ]
    assert counts[1] > 1.9 * counts[0]
    assert counts[2] < 1.1 * counts[0]


@pytest.mark.slow
def test_two_ranks_equal_the_local_engine(quick: list[str], tmp_path: Path) -> None:
    """A weight used twice in one backward pass, and once without a gradient before it."""
    common = [*quick, *SMOOTH, *TWO, "r1.gamma=0"]
    last = "gradient_through=last"
    cells = {
        "zero2": ["engine.zero_stage=2", "micro_batch=8"],
        "zero3-last": ["engine.zero_stage=3", *SHARD_ALL, last],
    }
    two_ranks([[*common, *new, f"run={tmp_path / name}"] for name, new in cells.items()], tmp_path)
    both, through_last = tuned(common, tmp_path / "both"), tuned(common, tmp_path / "last", last)
    for name, oracle in (("zero2", both), ("zero3-last", through_last)):
        for ours, expected in zip(read_stats(tmp_path / name), read_stats(oracle), strict=True):
            assert ours["loss/generator"] == pytest.approx(expected["loss/generator"], rel=1e-4)
            assert ours["gradient/generator"] == pytest.approx(
                expected["gradient/generator"], rel=2e-2
            )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (["sigma_mid=90"], "sigma_mid 90.0 is not below sigma 80.0"),
        (["gradient_through=last"], "set sigma_mid, too"),
        (["sigma_mid=0.8", "engine.zero_stage=3"], "set it to last"),
        (["network.augment_dim=9"], "fine-tuning has no augmentation labels"),
    ],
)
def test_settings_that_contradict_each_other(changes: list[str], expected: str) -> None:
    with pytest.raises(UserError, match=expected):
        load_settings("digits-d2o-f", changes, FinetuneSettings)
