"""The table of trainings: each row is that of its own settings."""

from __future__ import annotations

from typing import get_args

import pytest

from fasttrain.models.networks.coefficients import FAMILIES
from fasttrain.settings.recipes import load_settings
from fasttrain.settings.trainings import TRAININGS, training_of

RECIPES = {
    "pretrain": "digits-edm",
    "finetune": "digits-d2o-f",
    "distill": "digits-cd-gan",
    "score": "digits-dmd-gan",
    "meanflow": "digits-meanflow",
    "frechet": "digits-fd-f",
}


@pytest.mark.parametrize("task", TRAININGS)
def test_a_row_is_found_by_its_settings_and_by_their_task(task: str) -> None:
    row = TRAININGS[task]
    assert get_args(row.schema.model_fields["task"].annotation) == (task,) == (row.task,)
    assert row.precond in FAMILIES
    name = RECIPES[task]
    settings = load_settings(name, [], row.schema)
    assert training_of(settings) is row
    assert (settings.few_step is not None) == row.generator
    facts = row.facts(settings)
    assert facts["recipe"].endswith(f"run {settings.run.name}")
    assert facts["seed"] == settings.seed
