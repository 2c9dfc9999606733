"""Lists of tensors against a loop over them."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fasttrain_kernels.multi_tensor import all_finite, lerp_
from tests.kernels.support import DEVICE


def some() -> list[Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(5, 3, device=DEVICE),
        torch.zeros(0, device=DEVICE),
        torch.tensor(7, device=DEVICE),
        torch.full((40,), 6e4, device=DEVICE, dtype=torch.float16),  # its square, its sum overflow
        torch.full((300,), 3e38, device=DEVICE, dtype=torch.bfloat16),
        torch.full((9,), 3e38, device=DEVICE),
        torch.randn(2, 4, 1, 1, device=DEVICE).to(memory_format=torch.channels_last),
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", [0, 3, 4, 5, 6])
@pytest.mark.parametrize("position", [0, -1])
def test_one_bad_number_anywhere_shows(value: float, which: int, position: int) -> None:
    tensors = some()
    tensors[which].view(-1)[position] = value
    assert not bool(all_finite(tensors))


def test_large_numbers_are_finite_and_so_is_nothing() -> None:
    assert bool(all_finite(some()))
    assert bool(all_finite([]))
    assert bool(all_finite([torch.tensor([1, 2])]))


def test_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A number read back would make the CPU wait for the GPU at every step."""

    def refuse(*_: object) -> None:
        raise AssertionError("a value was read back")

    for name in ("item", "__bool__", "tolist", "cpu", "numpy"):
        monkeypatch.setattr(Tensor, name, refuse)
    result = all_finite(some())
    monkeypatch.undo()
    assert result.shape == ()
    assert bool(result)


def test_lerp_equals_a_loop() -> None:
    torch.manual_seed(1)
    shapes = [(3,), (4, 5), (0,), (2, 3, 1, 1)]
    targets, sources = ([torch.randn(s, device=DEVICE) for s in shapes] for _ in range(2))
    expected = [t + 0.3 * (s - t) for t, s in zip(targets, sources, strict=True)]
    kept = [s.clone() for s in sources]
    sources[0].requires_grad_()
    lerp_(targets, sources, 0.3)
    for target, e in zip(targets, expected, strict=True):
        torch.testing.assert_close(target, e)
        assert not target.requires_grad
    assert all(torch.equal(s, k) for s, k in zip(sources, kept, strict=True))
    lerp_([], [], 0.5)


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="1 targets but 2 sources"):
        lerp_([torch.zeros(1)], [torch.zeros(1), torch.zeros(1)], 0.5)
