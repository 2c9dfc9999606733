"""group_norm with statistics that are given."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fasttrain_kernels import _group_norm_launches as launches
from fasttrain_kernels import group_norm, partial_statistics
from tests.kernels.group_norm_definition import (
    assert_right,
    channels_last,
    definition,
    make_inputs,
    triton_op,
)
from tests.kernels.support import DEVICE, relative_error


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("pixels", [(3, 5), (16, 17)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_given_statistics_are_used(last, pixels, dtype, monkeypatch) -> None:
    """One chunk and two; of a concatenation; other statistics give another result."""
    monkeypatch.setattr(launches, "splits", lambda samples, groups, plan, given=False: given)
    inputs = make_inputs((2, 6, *pixels), dtype)
    inputs = channels_last(inputs) if last else inputs
    x = inputs["x"].detach()
    statistics = torch.cat([partial_statistics(x[:, :4]), partial_statistics(x[:, 4:])], dim=2)
    assert_right(inputs, 2, statistics=statistics)
    others = torch.stack([statistics[..., 0] + 1, statistics[..., 1]], dim=-1)
    moved = triton_op(**inputs, groups=2, statistics=others)
    shifted = {**inputs, "shift_in": inputs["shift_in"].detach() + 1}
    expected = triton_op(**shifted, groups=2, statistics=statistics)
    assert relative_error(moved, expected.double()) > 0.05


@pytest.mark.parametrize("last", [False, True])
def test_statistics_change_nothing_in_the_whole_form_and_the_reference(last: bool) -> None:
    inputs = make_inputs((2, 6, 3, 5), torch.float32)
    inputs = channels_last(inputs) if last else inputs
    statistics = partial_statistics(inputs["x"])
    for impl in ("triton", "reference"):
        plain, given = (
            group_norm(**inputs, groups=2, impl=impl, statistics=s)  # type: ignore[arg-type]
            for s in (None, statistics)
        )
        assert torch.equal(plain, given)


def test_statistics_may_lie_anyhow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a part of those of a concatenation, for instance."""
    monkeypatch.setattr(launches, "splits", lambda *sizes: True)
    x = make_inputs((2, 6, 17, 17), torch.float32, ())["x"].detach()
    statistics = partial_statistics(x)
    for other in (
        torch.cat([statistics + 1, statistics], dim=2)[:, :, 6:],
        statistics.permute(3, 2, 1, 0).contiguous().permute(3, 2, 1, 0),
    ):
        assert not other.is_contiguous()
        got = triton_op(x, groups=2, statistics=other)
        assert torch.equal(got, triton_op(x, groups=2, statistics=statistics))


def test_second_order_through_given_statistics(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics are of x: a gradient penalty differentiates through them all the same."""
    monkeypatch.setattr(launches, "splits", lambda samples, groups, plan, given=False: given)
    inputs = make_inputs((2, 6, 3, 2), torch.float32, ("weight", "bias"))

    def penalty(y: Tensor, x: Tensor) -> Tensor:
        (dx,) = torch.autograd.grad((y**2).sum(), x, create_graph=True)
        return torch.autograd.grad((dx**2).sum(), x)[0]

    exact = {name: t.detach().double().requires_grad_() for name, t in inputs.items()}
    y = triton_op(**inputs, groups=2, statistics=partial_statistics(inputs["x"]))
    expected = penalty(definition(**exact, groups=2), exact["x"])
    assert relative_error(penalty(y, inputs["x"]), expected) < 1e-5


@pytest.mark.parametrize(
    ("statistics", "message"),
    [
        (torch.zeros(2, 1, 5, 2), r"statistics must be torch.float32 \[2, 1, 6, 2\] as x has"),
        (torch.zeros(2, 1, 6, 2, dtype=torch.float64), "got torch.float64"),
    ],
)
def test_bad_statistics(statistics: Tensor, message: str) -> None:
    x = torch.zeros(2, 6, 3, 3, device=DEVICE)
    with pytest.raises(ValueError, match=message):
        group_norm(x, groups=2, statistics=statistics.to(DEVICE))
