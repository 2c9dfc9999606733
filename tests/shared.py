"""What the workers of pytest-xdist make once for all of them."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable
from pathlib import Path

import pytest

__all__ = ["made_once", "task_of"]

ENDINGS = {
    "-edm": "pretrain",
    "-d2o": "finetune",
    "-d2o-f": "finetune",
    "-cd": "distill",
    "-cd-gan": "distill",
    "-dmd": "score",
    "-dmd-gan": "score",
    "-ratio": "score",
    "-meanflow": "meanflow",
    "-fd-f": "frechet",
    "-fd-gan": "frechet",
}


def task_of(recipe: str) -> str:
    """The command that a shipped recipe is for, as its name says."""
    return next(task for ending, task in ENDINGS.items() if recipe.endswith(ending))


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder `name` of this test session, filled by `make(folder)` in the worker that is first;
    the others wait for it. What lies in it must not be changed."""
    base = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        base = base.parent
    folder, done = base / f"once-{name}", base / f"once-{name}.done"
    with (base / f"once-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            folder.mkdir()  # a second time after a failure: an error, too
            make(folder)
            done.touch()
    return folder
