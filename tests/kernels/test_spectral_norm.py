"""power_iteration against its definition in float64, for many matrices at once, and against the
singular values themselves. The kernels run in Triton's interpreter on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fasttrain_kernels import power_iteration
from tests.kernels.support import DEVICE, guarded

SHAPES = [(1, 1), (5, 7), (16, 128), (20, 131), (64, 1024 + 3), (3, 600)]
IMPLS = ("triton", "reference")


def make_matrices(dtype: torch.dtype = torch.float32) -> tuple[list[Tensor], ...]:
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> Tensor:
        return guarded(torch.randn(shape, generator=generator), dtype)

    weights = [draw(*shape) for shape in SHAPES]
    us = [draw(rows) for rows, _ in SHAPES]
    vs = [draw(columns) for _, columns in SHAPES]
    for vector in (*us, *vs):
        vector /= vector.norm()
    return weights, us, vs


@pytest.mark.parametrize("impl", IMPLS)
def test_one_step_equals_the_definition(impl: Any) -> None:
    weights, us, vs = make_matrices()
    before = [weight.clone() for weight in weights]
    expected = []
    for weight, u in zip(weights, us, strict=True):
        v = weight.double().t() @ u.double()
        v /= v.norm()
        new = weight.double() @ v
        expected.append((new / new.norm(), v))
    power_iteration(weights, us, vs, impl=impl)
    for (u, v), got_u, got_v in zip(expected, us, vs, strict=True):
        torch.testing.assert_close(got_u.double(), u, rtol=0, atol=1e-6)
        torch.testing.assert_close(got_v.double(), v, rtol=0, atol=1e-6)
    for weight, was in zip(weights, before, strict=True):
        assert torch.equal(weight, was)


@pytest.mark.parametrize("impl", IMPLS)
def test_it_converges_to_the_largest_singular_value_and_repeats(impl: Any) -> None:
    weights, us, vs = ([t] for t in (x[1] for x in make_matrices()))
    again = [u.clone() for u in us], [v.clone() for v in vs]
    for _ in range(60):
        power_iteration(weights, us, vs, impl=impl)
        power_iteration(weights, *again, impl=impl)
    sigma = us[0] @ weights[0] @ vs[0]
    torch.testing.assert_close(sigma, torch.linalg.matrix_norm(weights[0], 2))
    assert torch.equal(us[0], again[0][0])
    assert torch.equal(vs[0], again[1][0])


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("size", [1e-37, 1e-30, 1e-14, 1e14, 1e30, 1e36])
def test_tiny_and_huge_weights_have_a_direction(size: float, impl: Any) -> None:
    weights, us, vs = make_matrices()
    for weight in weights:
        weight *= size
    exact = [weight.double() for weight in weights]
    for weight, u, v in zip(exact, us, vs, strict=True):
        expected_v = weight.t() @ u.double()
        expected_v /= expected_v.norm()
        expected_u = weight @ expected_v
        expected_u /= expected_u.norm()
        power_iteration([weight.float()], [u], [v], impl=impl)
        torch.testing.assert_close(v.double(), expected_v, rtol=0, atol=1e-6)
        torch.testing.assert_close(u.double(), expected_u, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shift", [-40, 0, 40])
def test_ordinary_weights_keep_every_bit(shift: int) -> None:
    """The reference's result where torch's `normalize` needs no help."""
    weights, us, vs = make_matrices()
    for weight, u, v in zip(weights, us, vs, strict=True):
        small = torch.ldexp(weight, torch.tensor(shift // 2))
        expected_v = F.normalize(small.t().mv(u), dim=0, eps=1e-12)
        expected_u = F.normalize(small.mv(expected_v), dim=0, eps=1e-12)
        power_iteration([small], [u], [v], impl="reference")
        assert torch.equal(v, expected_v)
        assert torch.equal(u, expected_u)


def test_weights_that_moved_are_found_again() -> None:
    """Tables of addresses are kept; another place in memory is another table."""
    weights, us, vs = ([t] for t in (x[1] for x in make_matrices()))
    power_iteration(weights, us, vs, impl="triton")
    moved = [weights[0].clone() * 2 + 1]
    expected = moved[0].double().t() @ us[0].double()
    power_iteration(moved, us, vs, impl="triton")
    torch.testing.assert_close(vs[0].double(), expected / expected.norm(), rtol=0, atol=1e-6)


def test_a_weight_of_zeros_gives_no_nan() -> None:
    for impl in IMPLS:
        weight = torch.zeros(3, 4, device=DEVICE)
        u, v = torch.ones(3, device=DEVICE) / 3**0.5, torch.ones(4, device=DEVICE) / 2
        power_iteration([weight], [u], [v], impl=impl)  # type: ignore[arg-type]
        assert torch.equal(u.cpu(), torch.zeros(3))
        assert torch.equal(v.cpu(), torch.zeros(4))


def test_other_dtypes_and_strides_go_to_the_reference() -> None:
    weights, us, vs = make_matrices(torch.float64)
    power_iteration(weights, us, vs)
    with pytest.raises(ValueError, match=r"contiguous float32 only|takes float32"):
        power_iteration(weights, us, vs, impl="triton")
    weights, us, vs = make_matrices()
    with pytest.raises(ValueError, match="contiguous float32 only"):
        power_iteration([weights[1].t().contiguous().t()], us[1:2], vs[1:2], impl="triton")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), "got 0 weights"),
        (([torch.zeros(2, 3)], [], [torch.zeros(3)]), "1 weights, 0 us"),
        (([torch.zeros(2, 3)], [torch.zeros(3)], [torch.zeros(3)]), r"\[2, 3\] does not fit"),
    ],
)
def test_bad_arguments(arguments: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        power_iteration(*arguments)
