"""ghost_batch_norm over groups that several processes share, against whole groups in one: outputs
and gradients of two orders. The kernels run in Triton's interpreter on the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from fasttrain.discriminator.peers import Peers
from fasttrain_kernels import ghost_batch_norm
from fasttrain_kernels import spanning_batch_norm as op_file
from fasttrain_kernels._tiles import Plan
from tests.kernels.support import DEVICE, TOLERANCE, relative_error
from tests.kernels.test_ghost_batch_norm import ACTIVATIONS, IMPLS, definition
from tests.simulated_peers import replayed

# processes, images of a group, batches that pass at once, channels, height, width
CASES = [(2, 4, 2, 6, 3, 5), (4, 4, 3, 3, 2, 2)]


def shared(x: Tensor, size: int, batches: int) -> list[Tensor]:
    """What each process has of several batches of one group each: its part of each."""
    parts = x.unflatten(0, (batches, size, -1)).unbind(1)
    return [part.flatten(0, 1) for part in parts]


def together(parts: list[Tensor], batches: int) -> Tensor:
    """The opposite."""
    return torch.stack([part.unflatten(0, (batches, -1)) for part in parts], 1).flatten(0, 2)


def gradients(y: Tensor, seed: Tensor, leaves: list[Tensor], second: bool) -> list[Tensor]:
    """Of a sum with random weights; or of the squared norm of that by the first, as R1 is."""
    if not second:
        return list(torch.autograd.grad(y, leaves, seed))
    total = (y.pow(2) * seed).sum()
    (first,) = torch.autograd.grad(total, leaves[0], create_graph=True)
    return list(torch.autograd.grad(first.square().sum(), leaves))


def run(
    case: tuple[int, ...],
    impl: Any,
    activation: Any,
    *,
    second: bool,
    dtype: torch.dtype,
    offset: float = 0.5,
) -> tuple[list[Tensor], list[Tensor]]:
    """y and the gradients of x, weight and bias: what all processes have together, and exactly."""
    size, group, batches, channels, height, width = case
    generator = torch.Generator().manual_seed(0)
    x, seed = torch.randn(2, group * batches, channels, height, width, generator=generator)
    x = (x + offset).to(dtype)
    rows = [torch.randn(channels, generator=generator).to(torch.promote_types(dtype, torch.float))]
    rows.append(rows[0].flip(0))

    def work(peers: Peers) -> list[Tensor]:
        own = shared(x, size, batches)[peers.rank].to(DEVICE)
        own = own.contiguous(memory_format=torch.channels_last)
        leaves = [t.detach().to(DEVICE).requires_grad_() for t in (own, *rows)]
        y = ghost_batch_norm(
            *leaves, group=group // size, activation=activation, gather=peers.gather, impl=impl
        )
        assert y.dtype == dtype
        seeds = shared(seed, size, batches)[peers.rank].to(y)
        return [y.detach(), *gradients(y, seeds, leaves, second)]

    found = list(zip(*replayed(size, work), strict=True))
    got = [together(list(part), batches) for part in found[:2]]
    got += [torch.stack(part).double().sum(0) for part in found[2:]]
    exact = [t.double().requires_grad_() for t in (x, *rows)]
    y = definition(*exact, group, activation)
    return got, [y, *gradients(y, seed.double(), exact, second)]


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("second", [False, True])
@pytest.mark.parametrize("case", CASES[:2])
def test_the_formula_in_float64(case: tuple[int, ...], second: bool, activation: Any) -> None:
    got, wanted = run(case, "reference", activation, second=second, dtype=torch.float64)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=1e-9, atol=1e-9 * b.abs().max().item())


@pytest.mark.parametrize(
    ("case", "dtype"),
    [((2, 2, 1, 5, 17, 17), torch.float32), ((4, 4, 2, 3, 2, 2), torch.bfloat16)],
)
def test_the_kernels(
    case: tuple[int, ...], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several chunks of statistics and blocks of sums and channels, the last ones partial."""
    monkeypatch.setattr(op_file, "plan_split", lambda *a: Plan(4, 128, 1))
    got, wanted = run(case, "triton", "leaky_relu", second=False, dtype=dtype)
    for a, b in zip(got, wanted, strict=True):
        assert relative_error(a.cpu(), b) < TOLERANCE[dtype]


def test_second_order_through_the_kernels_is_that_of_the_formula() -> None:
    got, wanted = run((2, 2, 2, 2, 2, 3), "triton", "leaky_relu", second=True, dtype=torch.float32)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


@pytest.mark.parametrize("impl", IMPLS)
def test_a_mean_far_from_zero_cancels_nothing(impl: Any) -> None:
    got, wanted = run(
        (2, 2, 1, 3, 4, 4), impl, "none", second=False, dtype=torch.float32, offset=1000.0
    )
    torch.testing.assert_close(got[0].cpu().double(), wanted[0], rtol=1e-3, atol=1e-3)
