"""Which implementation runs, what a bad request is told, and life without triton."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fasttrain_kernels import dispatch, group_norm_silu, resolve


def stand_in(*, is_cuda: bool, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """What `resolve` looks at, so that the rule for CUDA tensors is tested without a GPU."""
    return SimpleNamespace(is_cuda=is_cuda, dtype=dtype, device="cuda:0" if is_cuda else "cpu")


def test_auto_is_triton_only_on_cuda_and_in_a_kernel_dtype() -> None:
    assert resolve("auto", stand_in(is_cuda=True)) == "triton"
    assert resolve("auto", stand_in(is_cuda=True, dtype=torch.bfloat16)) == "triton"
    assert resolve("auto", stand_in(is_cuda=True, dtype=torch.float64)) == "reference"
    assert resolve("auto", torch.zeros(2)) == "reference"
    assert resolve("reference", stand_in(is_cuda=True)) == "reference"


def test_triton_on_the_cpu_needs_the_interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
    assert resolve("triton", torch.zeros(2)) == "triton"
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    with pytest.raises(
        ValueError, match=r"needs a CUDA tensor, got one on cpu.*TRITON_INTERPRET=1"
    ):
        resolve("triton", torch.zeros(2))


def test_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'cuda'.*one of 'auto', 'triton', 'reference'"):
        resolve("cuda", torch.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"float64.*use impl='reference'"):
        resolve("triton", torch.zeros(2, dtype=torch.float64))
    monkeypatch.setattr(dispatch, "HAVE_TRITON", False)
    with pytest.raises(ValueError, match="not installed: use impl='auto'"):
        group_norm_silu(torch.zeros(1, 4, 2, 2), groups=2, impl="triton")
    assert resolve("auto", stand_in(is_cuda=True)) == "reference"


def test_the_package_works_where_triton_is_missing() -> None:
    program = """
import sys
sys.modules["triton"] = None  # an import of it now raises ImportError
import torch
from fasttrain_kernels import group_norm_silu
x = torch.arange(16.0).reshape(1, 4, 2, 2)
y = group_norm_silu(x, groups=2, silu=False)
torch.testing.assert_close(y.reshape(2, 8).mean(1), torch.zeros(2), atol=1e-6, rtol=0)
"""
    kernels = Path(__file__).parents[2] / "kernels"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=kernels)
