"""The reference of a run's own data is a sample of them, whatever their order."""

from __future__ import annotations

from pathlib import Path

import pytest

from fasttrain.evaluation.evaluate import Evaluator
from fasttrain.settings import PretrainSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.errors import UserError
from fasttrain_data.indexing import run_indexing
from tests.foreign import write_sorted


def evaluator(*changes: str) -> Evaluator:
    few = "evaluate={samples: 60, components: 8}"
    return Evaluator(load_settings("digits-edm", [few, *changes], PretrainSettings))


def test_tars_in_the_order_of_their_classes(tmp_path: Path) -> None:
    folder = write_sorted(tmp_path / "sorted", classes=10, each=80, per_shard=80)
    run_indexing(str(folder), workers=1, out=tmp_path / "index")
    found = evaluator(f"data.path={folder}", f"data.index={tmp_path / 'index'}")
    assert found.protocol()["reference"]["content"].endswith(", at random with seed 0")
    floor = found.real_floor()
    # The first images of sorted tars would be of a few classes each: fd over 100, recall 0.
    assert floor["fd"].value < 40
    assert floor["recall"].value > 0.5


def test_a_mixture_has_no_image_twice(shards: Path, folder: Path, tmp_path: Path) -> None:
    sets = f"[{{path: {shards}, weight: 1}}, {{path: {shards}, weight: 4}}]"
    # 150 images of each: after 187 of them the second set begins again.
    with pytest.raises(UserError, match=r"evaluate\.samples=100: .* 18\d images before one comes"):
        evaluator(f"data.mix={sets}", "evaluate.samples=100")
    assert len(evaluator(f"data.mix={sets}", "evaluate.samples=null").seeds) in range(90, 95)
