"""What every test needs before anything is imported.

Triton decides when a kernel is decorated whether it is compiled or interpreted, so the variable is
set before any import of it. On a GPU, `TRITON_INTERPRET=0 pytest tests/kernels` runs the compiled
kernels instead; a plain `pytest` uses no GPU, on which a run would take hours in the interpreter.
"""

import os
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

from tests.golden_cases import GoldenCase, load_golden

torch.set_num_threads(1)
if os.environ["TRITON_INTERPRET"] == "1" and torch.backends.cuda.is_built():
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read at the first use of a GPU, also by children

HERE = Path(__file__).parent
SLOW = ("cluster", "faults", "runs")
"""Folders whose tests train whole runs, in processes of their own and in this one."""
LONGEST = (
    "runs/test_demo.py",
    "faults/test_faults.py",
    "cluster/test_two_hosts.py",
    "runs/test_deepspeed.py",
    "kernels/test_aot.py",
)
"""They begin first, so that no worker ends with one of them while the others have nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {item: item.path.relative_to(HERE) for item in items if item.path.is_relative_to(HERE)}
    for item, place in places.items():
        if place.parts[0] in SLOW:
            item.add_marker(pytest.mark.slow)
    first = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(str(places.get(item)), len(first)))


@pytest.fixture
def golden() -> Callable[[str], GoldenCase]:
    """`golden(name)`: the golden case of that name, from tests/goldens or FASTTRAIN_GOLDENS."""
    return load_golden
