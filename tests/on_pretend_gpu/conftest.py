"""One machine with two pretend GPUs for all these tests, and a small shard set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.on_pretend_gpu.machine import Machine
from tests.on_pretend_gpu.trainings import FINETUNE, PRETRAIN


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    found = Machine(tmp_path_factory.mktemp("pretend-gpu"))
    yield found
    found.close()


@pytest.fixture(scope="session")
def folder(machine: Machine) -> Path:
    """Has `digits`, with class features, and `base`, a pre-training run on one pretend GPU."""
    place = machine.folder
    machine.run("trainings:prepare", place)
    data = place / "digits"
    machine.run("trainings:command", "class-features", data, "--resolution", "32")
    words = [*PRETRAIN, f"data.path={data}", f"run={place / 'base'}"]
    machine.run("trainings:command", "pretrain", *words)
    return place


@pytest.fixture(scope="session")
def tuned(machine: Machine, folder: Path) -> Path:
    """A fine-tuning run of one process with the defaults of a GPU; `waits.json` in it."""
    run = folder / "tuned"
    words = ["finetune", *FINETUNE, f"data.path={folder / 'digits'}", f"init={folder / 'base'}"]
    (found,) = machine.run("trainings:train", *words, f"run={run}")
    (run / "waits.json").write_text(json.dumps(found))
    return run
