"""bias_activation_ against its definition in float64, in place, in both memory formats. The kernel
runs in Triton's interpreter on the CPU."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch

from fasttrain_kernels import bias_activation_
from tests.kernels.support import DEVICE, TOLERANCE, guarded, relative_error

op_file: Any = import_module("fasttrain_kernels.bias_activation")

SHAPES = [(2, 3, 5, 7), (1, 8, 4, 4), (2, 9, 1, 1), (2, 6, 11), (1, 3, 33, 65), (0, 3, 2, 2)]
BOUNDS = {"none": (None, None), "relu": (0.0, None), "relu6": (0.0, 6.0)}


@pytest.mark.parametrize("impl", ["triton", "reference"])
@pytest.mark.parametrize("activation", BOUNDS)
@pytest.mark.parametrize("dtype", list(TOLERANCE))
def test_equals_the_definition(impl: Any, activation: Any, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    for shape in SHAPES:
        for last in (True, False):
            for with_bias in (True, False):
                y = 4 * torch.randn(shape, generator=generator)
                if last and len(shape) == 4:
                    y = y.contiguous(memory_format=torch.channels_last)
                y = guarded(y, dtype)
                bias = guarded(torch.randn(shape[1], generator=generator), torch.float32)
                row = bias.double().view(-1, *[1] * (len(shape) - 2))
                expected = y.double() + row if with_bias else y.double()
                low, high = BOUNDS[activation]
                expected = expected if low is None else expected.clamp(low, high)
                out = bias_activation_(y, bias if with_bias else None, activation, impl=impl)
                assert out is y
                assert relative_error(out, expected) < TOLERANCE[dtype]


def test_several_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(op_file, "plan", lambda *sizes: op_file.Plan(16, 1))
    for layout in (torch.channels_last, torch.contiguous_format):
        y = torch.randn(2, 3, 5, 7, device=DEVICE).contiguous(memory_format=layout)
        bias = torch.randn(3, device=DEVICE)
        expected = torch.relu(y + bias.view(3, 1, 1))
        torch.testing.assert_close(bias_activation_(y, bias, "relu", impl="triton"), expected)


@pytest.mark.parametrize("last", [True, False])
def test_a_batch_of_another_size_compiles_nothing(
    last: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that a compiled kernel is chosen by is the same, but for a number of samples for which
    Triton compiles nothing of its own. The interpreter keeps no kernels to count."""
    assert 'do_not_specialize=("samples",)' in Path(op_file.__file__).read_text()
    chosen = set()

    class Recorder:
        def __getitem__(self, grid: Any) -> Any:
            return lambda y, bias, samples, *rest, **options: chosen.add(
                (rest, *sorted(options.items()))
            )

    monkeypatch.setattr(op_file, "_kernel", Recorder())
    for samples in (1, 2, 16, 33):
        y = torch.zeros(samples, 3, 5, 7, device=DEVICE)
        y = y.contiguous(memory_format=torch.channels_last) if last else y
        bias_activation_(y, None, "relu", impl="triton")
    assert len(chosen) == 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"y": torch.zeros(1, 2, 3, requires_grad=True)}, "must not need one"),
        ({"bias": torch.zeros(3)}, r"bias must be \[2\]"),
        ({"activation": "gelu"}, "not 'gelu'"),
        (
            {"y": torch.zeros(1, 2, 3, 4, device=DEVICE).mT, "impl": "triton"},
            "contiguous or channels_last",
        ),
    ],
)
def test_bad_arguments(changes: dict[str, Any], message: str) -> None:
    arguments = {"y": torch.zeros(1, 2, 3), "bias": None, "activation": "relu", **changes}
    with pytest.raises(ValueError, match=message):
        bias_activation_(**arguments)
