"""Losses and gradients that are not finite."""

from __future__ import annotations

import shutil
from collections.abc import Sequence

import torch

from fasttrain.checkpoints import checkpoint
from fasttrain.data.cursor import fresh_order
from fasttrain.training.objectives import gan as objectives
from fasttrain.training.objectives.gan import generator_loss
from tests.faults.lab import PARTS, Inject, Lab, assert_same, fault, intact, lines, stage_of

FOREVER = 10**9


def poison(first: int, last: int, value: float = torch.nan) -> Inject:
    """The generator's loss of the iterations `first` to `last`, counted from 1, becomes `value`
    times itself (one micro-batch an iteration)."""

    def inject() -> None:
        calls = 0

        def poisoned(*args: object, **kwargs: object) -> torch.Tensor:
            nonlocal calls
            calls += 1
            loss = generator_loss(*args, **kwargs)  # type: ignore[arg-type]
            return loss * value if first <= calls <= last else loss

        objectives.generator_loss = poisoned  # type: ignore[assignment]

    return inject


def finite(run: str, lab: Lab) -> bool:
    step = checkpoint.find(lab.folder / run / "checkpoints")
    return all(bool(t.isfinite().all()) for name in PARTS for t in step.tensors(name).values())


def on_one_rank(lab: Lab, stage: int) -> None:
    run = lab.new_run(f"nan-{stage}")
    lab.train(run, *stage_of(stage), expect=[0, 0], inject=poison(3, 3), on=[1])
    found, unbroken = lines(run), lines(lab.reference(2, stage))
    assert [line.get("skipped/generator") for line in found] == [None, None, 1.0, None, None, None]
    assert found[:2] == unbroken[:2]
    # The generator did not move, and the discriminator did: its next loss is another one.
    assert found[3]["loss/generator"] != unbroken[3]["loss/generator"]
    assert not any("skipped/discriminator" in line for line in found)
    assert finite(run.name, lab)


for _stage in range(4):

    def _poisoned(lab: Lab, stage: int = _stage) -> None:
        on_one_rank(lab, stage)

    _poisoned.__name__ = f"nan_on_one_rank_at_zero_{_stage}"
    fault(
        "not finite",
        f"a NaN loss on rank 1 of two in one iteration, ZeRO {_stage}",
        "the step is skipped on both ranks and counted; training continues",
    )(_poisoned)


@fault(
    "not finite",
    "an infinite loss in one iteration",
    "the step is skipped and counted, although its gradient may be finite",
)
def infinite_loss(lab: Lab) -> None:
    run = lab.new_run("inf")
    lab.train(run, inject=poison(2, 2, torch.inf))
    assert [line.get("skipped/generator") for line in lines(run)] == [None, 1.0, *[None] * 4]
    assert finite(run.name, lab)


@fault(
    "not finite",
    "two consecutive iterations after a checkpoint, two allowed",
    "returns to the checkpoint, continues with other images and finishes; the lines say so",
)
def two_in_a_row(lab: Lab) -> None:
    run = lab.new_run("row")
    said = lab.train(run, "bad_steps.in_a_row=2", inject=poison(4, 5))
    assert "returning to step-0000000032, with images in another order" in said
    found, unbroken = lines(run), lines(lab.reference(1, 1))
    assert [line["images"] for line in found] == [16, 32, 48, 64, 80, 96]
    assert [line.get("rollbacks") for line in found] == [None, None, 1.0, None, None, None]
    assert found[:2] == unbroken[:2]
    assert found[2]["logits/real"] != unbroken[2]["logits/real"], "the same images again"
    state = checkpoint.find(run / "checkpoints").state
    assert state["rollbacks"] == 1
    assert {place["epoch"] for place in state["data"]["streams"].values()} == {1}
    assert finite(run.name, lab)


def going_back(lab: Lab, name: str, *changes: str) -> None:
    """Two ranks go back in the processes that they are; then two new ones are given the same
    checkpoint, with its data cursor and its count of rollbacks as they were afterwards."""
    run, again = lab.new_run(f"back-{name}"), lab.new_run(f"again-{name}")
    changes = (*changes, "bad_steps.in_a_row=2", "checkpoint.keep=3")
    lab.train(run, *changes, expect=[0, 0], inject=poison(4, 5), on=[1])
    shutil.copytree(run, again)
    begin, *later = checkpoint.steps(again / "checkpoints")
    cursor = fresh_order(begin.state["data"], later[0].state["data"]["seed"])
    for step in later:
        shutil.rmtree(step.path)
    files = {name: begin.tensors(name) for name in PARTS}
    state = begin.state | {"rollbacks": 1, "data": cursor}
    checkpoint.save(again / "checkpoints", begin.images, files, state)
    lab.train(again, *changes, expect=[0, 0])
    assert [line["images"] for line in lines(run) if "rollbacks" in line] == [48]
    assert_same(run, again, but="rollbacks")


for _name, _changes in {
    "ZeRO 0": stage_of(0),
    "ZeRO 1": stage_of(1),
    "ZeRO 2": stage_of(2),
    "ZeRO 3": stage_of(3),
    "ZeRO 3, small weights whole": ["engine.zero_stage=3"],
}.items():
    _slug = _name.lower().replace(",", "").replace(" ", "_")

    def _back(lab: Lab, name: str = _slug, changes: Sequence[str] = _changes) -> None:
        going_back(lab, name, *changes)

    _back.__name__ = f"going_back_at_{_slug}"
    fault(
        "not finite",
        f"two consecutive iterations on rank 1 of two, {_name}",
        "both return to the checkpoint, as two new processes would: bit-identical",
    )(_back)


@fault(
    "not finite",
    "all iterations from the fourth on",
    "after two returns to the checkpoint, status 2 and one line; the checkpoint is intact",
)
def for_ever(lab: Lab) -> None:
    for times, changes in (2, []), (1, ["bad_steps.rollbacks=1"]):
        run = lab.new_run(f"forever{times}")
        changes = ["bad_steps.in_a_row=2", *changes]
        said = lab.train(run, *changes, inject=poison(4, FOREVER), expect=[2])
        assert said.count("; returning to step-0000000032") == times
        assert f"also after returning to step-0000000032 {times} times; it is intact" in said
        assert "Traceback" not in said
        assert intact(run) == [32]


@fault(
    "not finite",
    "all iterations, from the first on",
    "status 2 and one line; no checkpoint to return to, nothing written",
)
def from_the_start(lab: Lab) -> None:
    run = lab.new_run("start")
    said = lab.train(run, "bad_steps.in_a_row=1", inject=poison(1, FOREVER), expect=[2])
    assert "before the first checkpoint" in said
    assert intact(run) == []


@fault(
    "not finite",
    "a weight that becomes NaN in memory, just before a checkpoint",
    "the checkpoint is not written; returns to the one before, and finishes",
)
def weight_gone_bad(lab: Lab) -> None:
    run = lab.new_run("weight")

    def inject() -> None:
        from fasttrain.training.ema import EMA

        update = EMA.update
        calls = 0

        def spoiled(ema: EMA, **progress: int) -> None:
            nonlocal calls
            calls += 1
            update(ema, **progress)
            if calls == 4:
                next(iter(ema.average.values())).view(-1)[0] = torch.nan

        EMA.update = spoiled  # type: ignore[method-assign]

    said = lab.train(run, inject=inject)
    assert "not finite at 64 images; returning to step-0000000032" in said
    assert intact(run) == [64, 96]
    assert finite(run.name, lab)
