"""Fresh memory is poisoned for every test of a kernel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._device import _device_constructors


@pytest.fixture(autouse=True)
def poisoned_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory that a kernel should have written but did not is NaN, not whatever was there."""

    def poisoned(allocate: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def fresh(*args: Any, **kwargs: Any) -> Tensor:
            out = allocate(*args, **kwargs)
            return out.fill_(float("nan")) if out.is_floating_point() else out

        return fresh

    # torch keeps the functions that a device's context is for when it first needs them: not these.
    _device_constructors()
    for name in ("empty", "empty_like"):
        monkeypatch.setattr(torch, name, poisoned(getattr(torch, name)))


@pytest.fixture
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU torch's own convolutions of float32 would round to TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
