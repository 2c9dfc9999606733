"""What every test needs before anything is imported.

Triton decides when a kernel is decorated whether it is compiled or interpreted, so the variable is
set before any import of it. On a GPU, `TRITON_INTERPRET=0 pytest tests/kernels` runs the compiled
kernels instead; a plain `pytest` uses no GPU, on which a run would take hours in the interpreter.
"""

import os
from collections.abc import Callable

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import torch

from tests.golden_cases import GoldenCase, load_golden

torch.set_num_threads(1)
if os.environ["TRITON_INTERPRET"] == "1" and torch.backends.cuda.is_built():
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read at the first use of a GPU, also by children


@pytest.fixture
def golden() -> Callable[[str], GoldenCase]:
    """`golden(name)`: the golden case of that name, from tests/goldens or FASTTRAIN_GOLDENS."""
    return load_golden
