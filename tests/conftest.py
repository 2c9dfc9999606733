"""What every test needs before anything is imported.

Triton decides when a kernel is decorated whether it is compiled or interpreted, so the variable is
set before any import of it. On a GPU, `TRITON_INTERPRET=0 pytest tests/kernels` runs the compiled
kernels instead; a plain `pytest` uses no GPU, on which a run would take hours in the interpreter.
"""

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("TRITON_INTERPRET", "1")

import pytest
import setuptools  # noqa: F401  # which DeepSpeed imports, and which must come before distutils
import torch

from fasttrain.system.heap import collect_rarely, keep_memory
from tests.files_in_memory import use_memory_for_files
from tests.golden_cases import GoldenCase, load_golden
from tests.hardware import hardware_semantics
from tests.interpreter import without_waste
from tests.kept import keep_command_lines

torch.set_num_threads(1)
keep_memory()
collect_rarely()
use_memory_for_files()
if os.environ["TRITON_INTERPRET"] == "1" and torch.backends.cuda.is_built():
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # read at the first use of a GPU, also by children
without_waste()
hardware_semantics()
keep_command_lines()

HERE = Path(__file__).parent
SLOW = (
    "benchmarks/test_discriminator.py",
    "benchmarks/test_gpu_bench.py",
    "benchmarks/test_memory.py",
    "cluster",
    "data/test_order_properties.py",
    "data/test_storage.py",
    "data/test_worker_processes.py",
    "data/test_workers.py",
    "data_tools/test_fuzz.py",
    "benchmarks/test_data_safety.py",
    "data_tools/test_writing.py",
    "discriminator/test_fast_path.py",
    "evaluation/test_measure.py",
    "evaluation/test_two_processes.py",
    "faults",
    "benchmarks/test_aot.py",
    "kernels/test_ghost_batch_norm.py",
    "kernels/test_group_norm.py",
    "kernels/test_group_norm_layouts.py",
    "kernels/test_group_norm_statistics.py",
    "kernels/test_image_prep.py",
    "kernels/test_scale_mixing.py",
    "on_pretend_gpu/test_commands.py",
    "on_pretend_gpu/test_training.py",
    "analysis/profiling/test_profile.py",
    "models/export/test_onnx.py",
    "models/export/test_pipeline.py",
    "models/networks/test_fused.py",
    "runs",
)
"""Folders and files that train whole runs, start many processes or go through many cases in
Triton's interpreter. `make test-fast` leaves them out, and what is marked as slow elsewhere."""

LONGEST = (
    "runs/test_demo.py",
    "faults/test_faults.py",
    "cluster/test_two_hosts.py",
    "runs/test_deepspeed.py",
    "benchmarks/test_data_safety.py",
    "on_pretend_gpu/test_training.py",
)
"""They begin first, so that no worker ends with one of them while the others have nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if moved := [name for name in (*SLOW, *LONGEST) if not (HERE / name).exists()]:
        raise pytest.UsageError(f"tests/conftest.py names what is not there: {', '.join(moved)}")
    places = {item: item.path.relative_to(HERE) for item in items if item.path.is_relative_to(HERE)}
    for item, place in places.items():
        if any(place.is_relative_to(slow) for slow in SLOW):
            item.add_marker(pytest.mark.slow)
    first = {name: at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: first.get(str(places.get(item)), len(first)))


def pytest_collection_finish() -> None:
    gc.collect()
    gc.freeze()  # modules imported by now stay: later collections skip them


ONE_MACHINE = "tests/on_pretend_gpu"
"""Its files share a server and the runs that it has made."""


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """`--dist loadfile`, but a folder with a machine of its own goes to one worker, too."""
    if config.getoption("dist") != "loadfile":
        return None
    from xdist.scheduler import LoadFileScheduling

    class Scheduling(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return ONE_MACHINE if nodeid.startswith(ONE_MACHINE) else super()._split_scope(nodeid)

    return Scheduling(config, log)


LAUNCHED = ("DS_ACCELERATOR", "LOCAL_RANK", "RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of launched processes. DeepSpeed sets some in a test's own process, and a later test's
processes would take them over."""


@pytest.fixture(autouse=True)
def no_variables_are_left() -> Iterator[None]:
    before = {name: os.environ.get(name) for name in LAUNCHED}
    yield
    for name, value in before.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


@pytest.fixture
def golden() -> Callable[[str], GoldenCase]:
    """`golden(name)`: the golden case of that name, from tests/goldens or FASTTRAIN_GOLDENS."""
    return load_golden
