"""What fails on one of two processes ends both in one line, at once and with nothing lost."""

from __future__ import annotations

import errno
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from fasttrain.checkpoints import checkpoint
from fasttrain.evaluation import comparison
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.settings.trainings import TRAININGS
from fasttrain.system.errors import PeerError, UserError
from fasttrain.system.processes import World
from fasttrain.training import distill, finetune, frechet, meanflow, pretrain, score
from tests.ranks import on_ranks
from tests.shared import task_of
from tests.tiny import NETWORK

HOSTS = ("gpu01", "gpu02")
TRAINS: dict[str, Callable[[Any, World], None]] = {
    "digits-edm": pretrain.pretrain,
    "digits-d2o-f": finetune.finetune,
    "digits-cd": distill.distill,
    "digits-dmd": score.score,
    "digits-meanflow": meanflow.meanflow,
    "digits-fd-f": frechet.frechet,
}


@pytest.mark.slow
def test_what_one_process_cannot_do_ends_both(
    quick: list[str], digits: Path, diffusion: Path, tmp_path: Path
) -> None:
    """Files that lie on one host alone, and an evaluation that fails on one: the checkpoint that
    was due is written without it."""
    run, evaluated = tmp_path / "run", tmp_path / "evaluated"

    def refused(world: World, recipe: str, *changes: str) -> None:
        words = [f"run={run}", "batch=16", *NETWORK, *changes]
        settings = load_settings(recipe, words, TRAININGS[task_of(recipe)].schema)
        with pytest.raises(UserError, match=r"^gpu02: .*nowhere"):
            TRAINS[recipe](settings, world)
        assert not run.exists()

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "Input/output error", "/w/lite2")

    def breaks(*_: object) -> None:
        raise ZeroDivisionError("by nothing")

    def evaluating(world: World, name: str, expected: type[Exception], said: str) -> None:
        words = [*quick, f"run={evaluated / name}", "images=64", "checkpoint.every=64"]
        words += ["evaluate={every: 64, samples: 8, components: null}", "sample.count=2"]
        settings = load_settings("digits-d2o-f", words, FinetuneSettings)
        with pytest.raises(expected, match=said):
            finetune.finetune(settings, world)

    def work(world: World) -> None:
        host = HOSTS[world.rank]
        platform.node = lambda: host
        nowhere = tmp_path / "nowhere"
        for recipe in TRAINS:
            data = f"data.path={nowhere if world.rank else digits}"
            if recipe == "digits-edm":
                refused(world, recipe, data)
                continue
            refused(world, recipe, data, f"init={diffusion}")
            init = f"init={nowhere if world.rank else diffusion}"
            refused(world, recipe, f"data.path={digits}", init)
        with pytest.MonkeyPatch.context() as patch:
            if world.rank == 1:
                patch.setattr(comparison, "generate", fails)
            evaluating(world, "far", OSError, "gpu02: Input/output error")
        with pytest.MonkeyPatch.context() as patch:
            if world.rank == 0:
                patch.setattr(comparison.Comparison, "numbers", breaks)
            ours = PeerError if world.rank else ZeroDivisionError
            evaluating(world, "main", ours, "by nothing")

    on_ranks(2, work, tmp_path)
    for name in ("far", "main"):
        assert [s.images for s in checkpoint.steps(evaluated / name / "checkpoints")] == [64]
