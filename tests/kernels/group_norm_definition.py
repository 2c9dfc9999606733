"""The definition of group_norm in float64, its inputs, and the choice of a form."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain_kernels import _group_norm_launches as launches
from fasttrain_kernels import group_norm
from fasttrain_kernels._group_norm_plans import WholePlan
from fasttrain_kernels._tiles import Plan
from tests.kernels.support import TOLERANCE, guarded, relative_error

NAMES = ("x", "weight", "bias", "shift_in", "scale", "shift")
OPTIONS = NAMES[1:]


def set_plan(monkeypatch: pytest.MonkeyPatch, plan: WholePlan | Plan | None) -> None:
    if isinstance(plan, Plan):
        monkeypatch.setattr(launches, "splits", lambda *sizes: True)
        monkeypatch.setattr(launches, "plan_split", lambda *sizes: plan)
    elif plan is not None:
        monkeypatch.setattr(launches, "splits", lambda *sizes: False)
        monkeypatch.setattr(launches, "plan_forward", lambda *sizes: plan)
        monkeypatch.setattr(launches, "plan_backward", lambda *sizes: plan)


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype, options: tuple[str, ...] = OPTIONS, seed: int = 0
) -> dict[str, Tensor]:
    """x, and the named options: parameters in float32, per-sample ones in the dtype of x."""
    generator = torch.Generator().manual_seed(seed)
    inputs = {"x": guarded(torch.randn(shape, generator=generator) * 2 + 0.5, dtype)}
    for name in OPTIONS:
        size = shape[1:2] if name in ("weight", "bias") else shape[:2]
        values = torch.randn(size, generator=generator)
        if name in options:
            own = torch.float32 if name in ("weight", "bias") else dtype
            inputs[name] = guarded(values, own)
    return {name: value.requires_grad_() for name, value in inputs.items()}


def definition(
    x: Tensor, weight: Any = None, bias: Any = None, *, groups: int, eps: float = 1e-5,
    shift_in: Any = None, scale: Any = None, shift: Any = None, activation: str = "silu",
) -> Tensor:  # fmt: skip
    """The formula, term by term."""

    def column(t: Tensor) -> Tensor:
        return t.reshape(t.shape + (1,) * (x.dim() - t.dim() - (t.dim() == 1)))

    h = x if shift_in is None else x + column(shift_in)
    grouped = h.reshape(x.shape[0], groups, -1)
    mean = grouped.mean(2, keepdim=True)
    variance = ((grouped - mean) ** 2).mean(2, keepdim=True)
    y = ((grouped - mean) / torch.sqrt(variance + eps)).reshape(x.shape)
    y = y if weight is None else y * column(weight)
    y = y if bias is None else y + column(bias)
    y = y if scale is None else y * (1 + column(scale))
    y = y if shift is None else y + column(shift)
    return y / (1 + torch.exp(-y)) if activation == "silu" else y


def triton_op(*args: Any, **kwargs: Any) -> Tensor:
    return group_norm(*args, **kwargs, impl="triton")


def channels_last(inputs: dict[str, Tensor]) -> dict[str, Tensor]:
    x = inputs["x"].detach().contiguous(memory_format=torch.channels_last)
    return {**inputs, "x": guarded(x, x.dtype).requires_grad_()}


def assert_right(
    inputs: dict[str, Tensor], groups: int, activation: str = "silu", **how: Any
) -> None:
    """Output and gradients, in the layout of x, against the definition in float64."""
    exact = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    expected = definition(**exact, groups=groups, activation=activation)
    y = triton_op(**inputs, groups=groups, activation=activation, **how)
    x = inputs["x"]
    assert y.stride() == x.stride()
    assert relative_error(y, expected) < TOLERANCE[y.dtype]
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1))
    dy = guarded(torch.empty_like(y, dtype=torch.float32, device="cpu").copy_(dy), y.dtype)
    grads = torch.autograd.grad(y, list(inputs.values()), dy)
    expected_grads = torch.autograd.grad(expected, list(exact.values()), dy.double())
    assert grads[0].stride() == x.stride()
    for name, grad, e in zip(inputs, grads, expected_grads, strict=True):
        assert relative_error(grad, e) < TOLERANCE[grad.dtype], name
