"""What an extractor shares with the networks that a generator is trained against."""

from __future__ import annotations

import pytest

from fasttrain.evaluation.shared import shared
from fasttrain.settings.recipes import load_settings
from fasttrain.settings.trainings import TRAININGS
from tests.shared import task_of

DINO = "evaluate.extractor=dino_vits16"


@pytest.mark.parametrize(
    ("recipe", "changes", "said"),
    [
        ("digits-d2o-f", [], "lite2 was trained on ImageNet's labels, as lite0 was"),
        ("digits-d2o-f", ["evaluate.extractor=lite0"], "lite0 evaluates the run and is what"),
        ("digits-d2o-f", [DINO], None),
        ("digits-d2o-f", [DINO, "discriminator.backbones=[{name: dino_vits16}]"], "dino_vits16 ev"),
        ("digits-d2o-f", ["discriminator.backbones=[{name: dino_vits16}]"], None),
        ("digits-cd", [], None),
        ("digits-cd-gan", [], "as lite0 was"),
        ("digits-dmd-gan", ["evaluate.extractor=inception"], "inception was trained on ImageNet's"),
        ("digits-fd-f", [], "as lite0 was"),
        ("digits-fd-f", ["judges=[{extractor: lite2}]"], "lite2 evaluates the run and is what"),
        ("digits-edm", [], None),
    ],
)
def test_it_says_what_is_shared(recipe: str, changes: list[str], said: str | None) -> None:
    found = shared(load_settings(recipe, changes, TRAININGS[task_of(recipe)].schema))
    assert found is None if said is None else said in (found or "")
