"""Freed memory is kept: large tensors that come and go cost no page faults. Python does not look at
all objects again and again while modules are imported."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

CHURN = """
import resource, sys
import torch
from fasttrain.system.heap import keep_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        large = [torch.ones(1 << 24) for _ in range(2)]  # of 64 MB: always mapped anew
        del large
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

faults()
before = faults()
kept = keep_memory()
faults()
print(kept, before, faults())
"""


def churned(**variables: str) -> tuple[str, int, int]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
    environment |= {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-c", CHURN]
    said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kept, before, after = said.stdout.split()
    return kept, int(before), int(after)


@pytest.mark.slow
@pytest.mark.skipif("CS_GNU_LIBC_VERSION" not in os.confstr_names, reason="glibc's own function")
def test_large_tensors_that_come_and_go_cost_no_page_faults() -> None:
    kept, before, after = churned()
    assert kept == "True"
    assert before > 10_000  # glibc maps them anew each time
    assert after < before / 100


@pytest.mark.slow
def test_the_users_own_choice_wins() -> None:
    kept, before, after = churned(MALLOC_MMAP_THRESHOLD_="65536")
    assert kept == "False"
    assert after > before / 2


COLLECTIONS = """
import gc, sys
from fasttrain.system.heap import collect_rarely

if sys.argv[1] == "rarely":
    for _ in range(20):  # commands that follow each other in one process
        collect_rarely()
import fasttrain.training.finetune, torch._dynamo
print(gc.get_stats()[2]["collections"], gc.get_stats()[0]["collections"])
"""


@pytest.mark.slow
def test_imports_are_hardly_followed_by_full_collections() -> None:
    def collected(how: str) -> list[int]:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", COLLECTIONS, how]
        said = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return [int(count) for count in said.stdout.split()]

    often, rarely = collected("often"), collected("rarely")
    assert often[0] >= 3
    assert rarely[0] <= 1
    assert rarely[1] == pytest.approx(often[1], rel=0.1)  # young objects: as before
