"""When skipped steps send a run back to a checkpoint."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttrain.checkpoints.checkpoint import Step
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain.training.run.recovery import BadSteps


def bad_steps(limit: int) -> BadSteps:
    words = [f"bad_steps.in_a_row={limit}"]
    return BadSteps(load_settings("digits-d2o-f", words, FinetuneSettings))


def iteration(bad: BadSteps, **steps: bool) -> bool:
    for name, applied in steps.items():
        bad.note(name, applied)
    return bad.end_iteration()


def test_any_skipped_step_makes_an_iteration_bad() -> None:
    bad = bad_steps(3)
    assert not iteration(bad, generator=False, discriminator=True)
    assert not iteration(bad, generator=True, discriminator=False)
    assert bad.in_a_row == 2
    assert iteration(bad, generator=False, discriminator=True)
    assert not iteration(bad, generator=True, discriminator=True)
    assert bad.in_a_row == 0


def test_a_step_that_is_rarely_due_is_counted_over_the_iterations_without_it() -> None:
    """Else a generator that is due in every fifth iteration may fail for ever."""
    bad = bad_steps(3)
    found = []
    for number in range(12):
        due = {} if number % 4 else {"generator": False}
        found.append(iteration(bad, score=True, **due))
    assert [number for number, ends in enumerate(found) if ends] == [8, 9, 10, 11]
    assert bad.iterations == 0
    assert not iteration(bad, generator=True)


def test_it_does_not_return_to_ever_newer_checkpoints() -> None:
    bad = bad_steps(2)
    for images in range(bad.limits.rollbacks + 1):
        for number in range(5):
            iteration(bad, score=True, **({} if number % 4 else {"generator": False}))
        newest = Step(Path("step"), images)
        if images < bad.limits.rollbacks:
            assert bad.way_back("losses", newest) is newest
    with pytest.raises(UserError, match=f"returning to step {bad.limits.rollbacks} times"):
        bad.way_back("losses", newest)
