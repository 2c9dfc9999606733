"""`kernels=` reaches every operation of a run: what it asks the dispatch for, and what it gets."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from fasttrain.analysis.report.page import write_report
from fasttrain.evaluation.measure import evaluate_model
from fasttrain.evaluation.request import Request
from fasttrain.evaluation.summary import evaluate_run
from fasttrain.sampling.sample import Wanted, sample_model
from fasttrain.settings import FinetuneSettings
from fasttrain.settings.recipes import load_settings
from fasttrain.system.processes import ONE_PROCESS
from fasttrain.training.finetune import finetune
from fasttrain_kernels import dispatch

OPS = {
    *("attention", "bias_activation", "counter_random", "ghost_batch_norm", "group_norm"),
    *("image_prep", "logit_losses", "resample", "residual_scale", "scale_mixing"),
    "spectral_norm",
}
SHORT = ["images=96", "r1.interval=2", "sample.every=32", "checkpoint.every=96"]
"""Three iterations, the last of which has lazy R1, then a grid, an evaluation and a checkpoint."""


class Answers:
    """What each operation would run, by its module; all of them run the reference in fact, for the
    interpreter takes minutes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.given: set[tuple[str, str]] = set()
        self.on_gpu = False
        self.resolve = dispatch.resolve
        for name, module in list(sys.modules.items()):
            if name.startswith("fasttrain") and getattr(module, "resolve", None) is self.resolve:
                patch.setattr(module, "resolve", self._recorder(name.rpartition(".")[2]))

    def _recorder(self, name: str) -> Any:
        def answer(impl: Any, tensor: torch.Tensor) -> str:
            seen: Any = tensor
            if self.on_gpu:
                gpu = torch.device("cuda", 0)
                seen = SimpleNamespace(is_cuda=True, dtype=tensor.dtype, device=gpu)
            choice = self.resolve(impl, seen)
            if tensor.dtype in dispatch.KERNEL_DTYPES:
                self.given.add((name, choice))
            return "reference"

        return answer

    def take(self) -> dict[str, set[str]]:
        """{implementation: the operations that would have run it} since the last call."""
        given, self.given = self.given, set()
        return {c: {name for name, choice in given if choice == c} for _, c in given}


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Answers]:
    yield Answers(monkeypatch)
    assert dispatch.scope() == "auto"


def train(quick: list[str], run: Path, *changes: str) -> None:
    overrides = [*quick, *SHORT, *changes, f"run={run}"]
    finetune(load_settings("digits-d2o-f", overrides, FinetuneSettings), ONE_PROCESS)


def test_reference_means_that_nothing_asks_for_triton(
    quick: list[str], tmp_path: Path, answers: Answers
) -> None:
    """Where all tensors say that they are on a GPU, and `auto` is Triton."""
    answers.on_gpu = True
    run = tmp_path / "run"
    train(quick, run, "kernels=reference")
    found = answers.take()
    assert found.keys() == {"reference"}, found.get("triton")
    assert found["reference"] >= OPS
    sample_model(run, str(tmp_path / "grid.png"), Wanted(seeds="0-3"))
    evaluate_model(run, Request(seeds="0-39", metrics=("fd",)), ONE_PROCESS)
    evaluate_run(run)
    write_report(run)
    found = answers.take()
    assert found.keys() == {"reference"}, found.get("triton")
    assert found["reference"] >= {"counter_random", "bias_activation", "group_norm", "attention"}


def test_triton_means_that_all_ask_for_it(
    quick: list[str], tmp_path: Path, answers: Answers
) -> None:
    """Also for tensors on the CPU, which the interpreter takes."""
    train(quick, tmp_path / "run", "kernels=triton", "images=32", "r1.kind=approximated")
    found = answers.take()
    assert found["triton"] >= OPS
    # A new convolution's vectors are brought near before it has a device.
    assert found.get("reference", set()) <= {"spectral_norm"}
