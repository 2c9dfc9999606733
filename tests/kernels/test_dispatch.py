"""Which implementation runs, what a bad request is told, and life without triton."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from fasttrain_kernels import attention, dispatch, group_norm, resolve, using

attention_file = import_module("fasttrain_kernels.attention")


def stand_in(*, is_cuda: bool, dtype: torch.dtype = torch.float32) -> SimpleNamespace:
    """What `resolve` looks at, so that the rule for CUDA tensors is tested without a GPU."""
    device = torch.device("cuda:0" if is_cuda else "cpu")
    return SimpleNamespace(is_cuda=is_cuda, dtype=dtype, device=device)


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


def test_autocast_is_refused_in_one_line() -> None:
    """It would hand a residual sum bfloat16 and float32, or a backward pass another dtype."""
    x = torch.zeros(1, 4, 2, 2)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for impl in ("auto", "reference"):
            with pytest.raises(ValueError, match=r"torch\.autocast is on, .*: cast that instead"):
                group_norm(x, groups=2, impl=impl)  # type: ignore[arg-type]
        with torch.autocast("cpu", enabled=False):
            group_norm(x, groups=2)
        assert resolve("auto", torch.zeros(2, device="meta")) == "reference"


def test_a_scope_says_what_auto_means(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
    gpu, cpu = stand_in(is_cuda=True), stand_in(is_cuda=False)
    double = stand_in(is_cuda=True, dtype=torch.float64)
    with using("reference"):
        assert resolve("auto", gpu) == "reference"
        assert resolve("triton", gpu) == "triton"  # asked for by name
        with using("auto"):
            assert resolve("auto", gpu) == "reference"
        with using("triton"):
            assert [resolve("auto", x) for x in (gpu, cpu, double)] == ["triton"] * 2 + [
                "reference"
            ]
            assert resolve("reference", gpu) == "reference"
        assert resolve("auto", gpu) == "reference"
    with pytest.raises(RuntimeError, match="broken"), using("reference"):
        raise RuntimeError("broken")
    assert resolve("auto", gpu) == "triton"
    with pytest.raises(ValueError, match=r"'cuda'.*one of"), using("cuda"):  # type: ignore[arg-type]
        pass
    monkeypatch.setattr(dispatch, "INTERPRETED", False)
    with using("triton"), pytest.raises(ValueError, match="needs a CUDA tensor"):
        resolve("auto", cpu)


def test_a_scope_holds_in_every_thread() -> None:
    """Those of autograd, which know no context variable of the thread that called backward."""
    with using("reference"), ThreadPoolExecutor(1) as other:
        assert other.submit(resolve, "auto", stand_in(is_cuda=True)).result() == "reference"


def test_attention_in_a_scope(monkeypatch: pytest.MonkeyPatch) -> None:
    """`auto` looks up what was measured; a scope says what runs, as far as the kernels go."""
    ran: list[str] = []
    monkeypatch.setattr(dispatch, "INTERPRETED", True)
    monkeypatch.setattr(attention_file, "_forward", lambda x, n: ran.append("triton") or (x,))
    monkeypatch.setattr(
        attention_file, "attention_reference", lambda x, *, heads: ran.append("reference")
    )
    small, large = torch.zeros(1, 12, 2, 2), torch.zeros(1, 3 * 256, 2, 2)
    with using("triton"):
        attention(small, heads=1)
        attention(large, heads=1)
    with using("reference"):
        attention(small, heads=1)
    assert ran == ["triton", "reference", "reference"]


def test_errors_say_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"'cuda'.*one of 'auto', 'triton', 'reference'"):
        resolve("cuda", torch.zeros(2))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"float64.*use impl='reference'"):
        resolve("triton", torch.zeros(2, dtype=torch.float64))
    monkeypatch.setattr(dispatch, "HAVE_TRITON", False)
    with pytest.raises(ValueError, match="not installed: use impl='auto'"):
        group_norm(torch.zeros(1, 4, 2, 2), groups=2, impl="triton")
    assert resolve("auto", stand_in(is_cuda=True)) == "reference"


@pytest.mark.slow
def test_the_package_works_where_triton_is_missing() -> None:
    program = """
import sys
sys.modules["triton"] = None  # an import of it now raises ImportError
import torch
from fasttrain_kernels import group_norm
x = torch.arange(16.0).reshape(1, 4, 2, 2)
y = group_norm(x, groups=2, activation="none")
torch.testing.assert_close(y.reshape(2, 8).mean(1), torch.zeros(2), atol=1e-6, rtol=0)
"""
    kernels = Path(__file__).parents[2] / "kernels"
    subprocess.run([sys.executable, "-c", program], check=True, cwd=kernels)
