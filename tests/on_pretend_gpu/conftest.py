"""One machine with two pretend GPUs for all these tests, and a small shard set."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.on_pretend_gpu.machine import Machine
from tests.on_pretend_gpu.runs import Trained
from tests.on_pretend_gpu.trainings import PRETRAIN


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    if torch.backends.cuda.is_built():
        pytest.skip("the pretend GPU takes the place of CUDA: install torch's build for CPUs")
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
def trained(machine: Machine, folder: Path) -> Trained:
    """Makes fine-tuning runs, each once."""
    return Trained(machine, folder)


@pytest.fixture(scope="session")
def tuned(trained: Trained) -> Path:
    """A fine-tuning run of one process with the defaults of a GPU."""
    return trained.run("tuned")[0]
