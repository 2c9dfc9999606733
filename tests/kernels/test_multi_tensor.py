"""Lists of tensors against a loop over them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

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
        torch.randn(2, 4, 3, 1, device=DEVICE).to(memory_format=torch.channels_last),
        torch.full((9,), 1e300, device=DEVICE, dtype=torch.float64),  # more than float32 holds
        torch.full((3,), 65504.0, device=DEVICE, dtype=torch.float16),  # the largest
        torch.randn(4, 6, device=DEVICE)[:, ::2].requires_grad_(),
    ]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("which", [0, 3, 4, 5, 6, 7, 8, 9])
@pytest.mark.parametrize("position", [0, -1])
def test_one_bad_number_anywhere_shows(value: float, which: int, position: int) -> None:
    tensors = some()
    bad = tensors[which].detach()
    bad[(position,) * bad.dim()] = value
    result = all_finite(tensors)
    assert not all(bool(t.isfinite().all()) for t in tensors)
    assert not bool(result)
    assert bool(all_finite(tensors[:which] + tensors[which + 1 :]))


def test_large_numbers_are_finite_and_so_is_nothing() -> None:
    for tensors in (some(), *([tensor] for tensor in some()), []):
        result = all_finite(tensors)
        assert bool(result)
        assert (result.dtype, result.shape) == (torch.bool, ())
        assert not result.requires_grad
    assert all_finite(some()).device == some()[0].device
    assert all_finite([torch.zeros(0, device=DEVICE)]).device.type == DEVICE


class Count(TorchDispatchMode):
    """How often torch is asked for a kernel."""

    calls = 0

    def __torch_dispatch__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        self.calls += 1
        return func(*args, **kwargs or {})


def test_many_tensors_take_no_more_calls_than_few() -> None:
    def calls(times: int) -> tuple[int, int]:
        tensors = [tensor.detach() for tensor in some()] * times
        floating = [tensor for tensor in tensors if tensor.is_floating_point()]
        with Count() as finite:
            all_finite(tensors)
        with Count() as lerp:
            lerp_(floating, floating, 0.5)
        return finite.calls, lerp.calls

    dtypes = 4
    assert calls(1) == calls(50)
    assert calls(1)[1] == dtypes


def test_without_a_wait_for_the_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
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
    kinds = [
        ((3,), torch.float32),
        ((4, 5), torch.bfloat16),
        ((0,), torch.float32),
        ((2, 3, 1, 1), torch.float64),
        ((7,), torch.float16),
        ((), torch.bfloat16),
    ]
    targets, sources = ([torch.randn(s, device=DEVICE).to(d) for s, d in kinds] for _ in range(2))
    exact = [t.double() + 0.3 * (s.double() - t) for t, s in zip(targets, sources, strict=True)]
    expected = [e.to(dtype) for e, (_, dtype) in zip(exact, kinds, strict=True)]
    kept = [s.clone() for s in sources]
    sources[0].requires_grad_()
    lerp_(targets, sources, 0.3)
    for target, e in zip(targets, expected, strict=True):
        torch.testing.assert_close(target, e)
        assert not target.requires_grad
    assert all(torch.equal(s, k) for s, k in zip(sources, kept, strict=True))
    lerp_([], [], 0.5)


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ([torch.zeros(2)], "2 targets but 1 sources"),
        ([torch.ones(2), torch.zeros(1)], r"target 1 is torch.float32 \[3\], .* \[1\]"),
        ([torch.ones(2), torch.zeros(3).half()], "target 1 .* its source torch.float16"),
    ],
)
def test_lists_that_do_not_match_are_refused(sources: list[Tensor], message: str) -> None:
    targets = [torch.zeros(2), torch.zeros(3)]
    with pytest.raises(ValueError, match=message):
        lerp_(targets, sources, 0.5)
    assert not any(target.any() for target in targets)  # nor is a part of them written
