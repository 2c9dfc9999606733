"""One registration: an op is its own function where tensors have values, whole everywhere else."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from fasttrain_kernels._registration import op


def _gradients(ctx: Any, dy: Tensor) -> Tensor:
    return dy * ctx.factor


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.factor = 2.0


ran: list[str] = []


@op("test_double", fake=lambda x: torch.empty_like(x), gradients=_gradients, context=_keep)
def double(x: Tensor) -> Tensor:
    ran.append(type(x).__name__)
    return 2 * x.detach()


@op("test_fill", written=("y",))
def fill(x: Tensor, y: Tensor) -> None:
    y.data.copy_(x)  # as a kernel does, unseen by autograd


class Names(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def test_with_values_it_is_called_as_it_is() -> None:
    x = torch.ones(3, requires_grad=True)
    y = double(x)
    assert type(y.grad_fn).__name__ == "fasttrain_test_doubleBackward"
    assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.full((3,), 2.0))
    with torch.no_grad():
        assert double(x).grad_fn is None
    assert double(torch.ones(3)).grad_fn is None


def test_without_values_it_is_whole() -> None:
    ran.clear()
    assert double(torch.empty(3, device="meta")).shape == (3,)
    with FakeTensorMode():
        assert double(torch.empty(3)).shape == (3,)
    assert not ran
    with Names() as seen:
        double(torch.ones(3, requires_grad=True))
    assert "fasttrain::test_double" in seen.names


def test_a_write_is_seen_by_autograd() -> None:
    """What was saved for a backward pass and then overwritten is an error, not a wrong gradient."""
    x, y = torch.ones(3), torch.zeros(3)
    z = (y * torch.ones(3, requires_grad=True)).sum()
    fill(x, y)
    assert torch.equal(y, x)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        z.backward()


def test_the_sigmoid_of_four_instructions_is_right_to_3e_7() -> None:
    """With the errors that PTX's reference allows its two approximations, at their worst: 2^-22 of
    ex2's result and 2^-23 of rcp's, and every product and sum rounded to float32."""
    z = np.linspace(-80, 80, 100_001, dtype=np.float32)
    exact = 1 / (1 + np.exp(-z.astype(np.float64)))
    power = (z * np.float32(-1.4426950408889634)).astype(np.float64)
    for sign in (-1, 1):
        e = (np.exp2(power) * (1 + sign * 2.0**-22)).astype(np.float32)
        s = (1 / (np.float32(1) + e).astype(np.float64) * (1 - sign * 2.0**-23)).astype(np.float32)
        assert np.abs(s - exact).max() < 3e-7
        assert (np.abs(s - exact) / exact)[np.abs(z) < 10].max() < 2e-6
