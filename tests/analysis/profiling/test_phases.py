"""The iteration by phase: the parts add up, by hand and on the real loop."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fasttrain.analysis.profiling.columns import columns_for, random_weights
from fasttrain.analysis.profiling.meter import Meter
from fasttrain.analysis.profiling.phases import phase_table, phases_of
from fasttrain.analysis.profiling.step import Trainer, synthetic_batch
from fasttrain.discriminator.build import new_discriminator
from tests.analysis.profiling.support import CPU, tiny


def script(*calls: str) -> list[tuple[str, float]]:
    """Events a millisecond apart: each call takes one, and so does each gap."""
    names = [event for call in calls for event in (f"({call}", f"{call})")]
    return [(e, float(t)) for t, e in enumerate(["(iteration", *names, "iteration)"])]


GENERATOR = ("forward G", "forward D", "backward", "optimizer")
DISCRIMINATOR = ("forward G", "forward D", "forward D", "backward", "optimizer")
R1 = ("forward D", "backward", "optimizer")
G, D, P, A = "generator step", "discriminator step", "R1 step", "average"
BETWEEN = "between: latents, losses, reports"


def test_segments_go_to_the_step_they_are_in() -> None:
    events = script(*GENERATOR, *DISCRIMINATOR, "EMA")
    assert phases_of(events) == {
        (G, "forward G"): 1, (G, "forward D"): 1, (G, "backward"): 1, (G, "optimizer"): 1,
        (G, BETWEEN): 4,
        (D, "forward G"): 1, (D, "forward D"): 2, (D, "backward"): 1, (D, "optimizer"): 1,
        (D, BETWEEN): 5, (D, "spectral norm"): 1,
        (A, "EMA"): 2,
    }  # fmt: skip


def test_r1_follows_and_micro_batches_repeat() -> None:
    halves = (*GENERATOR[:3], *GENERATOR, *DISCRIMINATOR[:4], *DISCRIMINATOR)
    events = script(*halves, *R1[:2], *R1, "EMA")
    phases = phases_of(events)
    assert phases[G, "forward G"] == phases[D, "forward G"] == 2
    assert phases[D, "forward D"] == 4
    assert phases[D, "spectral norm"] == phases[P, "spectral norm"] == 1
    assert phases[P, "gradient of the images"] == phases[P, "backward"] == 2
    assert phases[A, "EMA"] == 2
    assert sum(phases.values()) == events[-1][1]


def test_rows_add_up_and_r1_counts_once_in_its_interval() -> None:
    plain = phases_of(script(*GENERATOR, *DISCRIMINATOR, "EMA"))
    r1 = phases_of(script(*GENERATOR, *DISCRIMINATOR, *R1, "EMA"))
    whole, whole_r1 = sum(plain.values()), sum(r1.values())
    table = phase_table([whole] * 3, [plain] * 3, [whole_r1] * 3, [r1] * 3, 16)
    assert table["difference_ms"] == pytest.approx(0)
    assert table["sum_ms"] == pytest.approx(whole + (whole_r1 - whole) / 16)
    assert table["r1"]["median_ms"] == whole_r1 - whole
    assert sum(row["share"] for row in table["rows"]) == pytest.approx(1)
    steps = [row["step"] for row in table["rows"]]
    assert list(dict.fromkeys(steps)) == [G, D, P, A]
    assert all(row["every"] == (16 if row["step"] == P else 1) for row in table["rows"])

    without = phase_table([whole + 1], [plain], [], [], 16)
    assert without["r1"] is without["iteration_with_r1"] is None
    assert without["difference_ms"] == -1


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    settings = tiny()
    column = columns_for(settings, CPU, False)[-1]
    network = column.network(random_weights(settings, CPU), settings, CPU)
    torch.manual_seed(0)
    discriminator = new_discriminator(settings, CPU, fresh=False)
    return Trainer(settings, network, discriminator, Meter(CPU))


def test_the_loop_that_trains_is_the_one_that_is_measured(trainer: Trainer) -> None:
    """Every phase appears, the segments fill the iteration, and it trained."""
    before = {n: p.detach().clone() for n, p in trainer.generator.named_parameters()}
    heads = [p.detach().clone() for p in trainer.discriminator.heads.parameters()]
    events = trainer.stamped(r1=True)
    assert (events[0][0], events[-1][0]) == ("(iteration", "iteration)")
    phases = phases_of(events)
    assert sum(phases.values()) == pytest.approx(events[-1][1] - events[0][1])
    assert list(phases) == list(phases_of(script(*GENERATOR, *DISCRIMINATOR, *R1, "EMA")))
    assert min(phases.values()) >= 0
    for name, parameter in trainer.generator.named_parameters():
        assert parameter.requires_grad != torch.equal(parameter, before[name]), name
        average = trainer.ema.average.get(name)
        assert average is None or not torch.equal(average, before[name])
    after = trainer.discriminator.heads.parameters()
    assert all(not torch.equal(p, old) for p, old in zip(after, heads, strict=True))
    assert not any(P in key for key in phases_of(trainer.stamped(r1=False)))


def test_synthetic_images_are_random_and_8_bit(trainer: Trainer) -> None:
    batch: Any = synthetic_batch(trainer.settings, CPU)
    levels = (batch.images + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), atol=1e-4, rtol=0)
    assert float(levels.min()) < 16
    assert float(levels.max()) > 240
    assert 0.5 < float(batch.images.std()) < 0.65
    assert torch.equal(batch.class_labels.sum(1), torch.ones(2))
    assert torch.equal(batch.images, synthetic_batch(trainer.settings, CPU).images)
