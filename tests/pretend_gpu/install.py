"""Installation in this process, for good."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import torch
from torch.utils._device import _device_constructors

from . import cuda, devices, distributed, generators, launches, profiler
from .devices import MACHINE, index_of
from .native import library
from .operators import run
from .tensor import plain_data, set_data

__all__ = ["install"]

_kept: list[Any] = []


def install(
    gpus: int = 1,
    *,
    name: str = MACHINE.name,
    capability: tuple[int, int] = MACHINE.capability,
    memory: int = MACHINE.memory,
) -> None:
    """Give this process GPUs, from now on and for good; before anything uses one.

    memory: bytes that each of them holds. A second call changes nothing.
    """
    if _kept:
        return
    MACHINE.gpus, MACHINE.name = gpus, name
    MACHINE.capability, MACHINE.memory = capability, memory
    library.pretend_install(memory)
    devices.watch_forks()
    generators.seed_all(0)
    # A build without CUDA has no kernels of the dispatch key CUDA: all its operators fall back.
    fallback = torch.library.Library("_", "IMPL")
    fallback.fallback(run, "CUDA")
    _kept.append(fallback)
    _lift_from_cpu()
    torch.Tensor.data = property(plain_data.__get__, set_data)  # type: ignore[assignment]
    torch.Tensor.cuda = _cuda  # type: ignore[assignment, method-assign]
    cuda.install()
    launches.install()
    distributed.install()
    profiler.install()


def _cuda(
    self: torch.Tensor, device: Any = None, non_blocking: bool = False, **_: Any
) -> torch.Tensor:
    index = index_of("cuda" if device is None else device)
    return self.to(torch.device("cuda", index), non_blocking=non_blocking)


def _lift_from_cpu() -> None:
    """`torch.tensor(1, device="cuda")` fills a tensor of the CPU and moves it. torch has a switch
    for that in each thread, so it is set at each call."""
    _device_constructors()  # torch keeps the functions themselves, which are replaced here
    for owner, name in ((torch, "tensor"), (torch, "as_tensor"), (torch.Tensor, "new_tensor")):
        setattr(owner, name, _lifting(getattr(owner, name)))


def _lifting(function: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @wraps(function)
    def lifted(*args: Any, **kwargs: Any) -> torch.Tensor:
        torch._C._set_only_lift_cpu_tensors(True)
        return function(*args, **kwargs)

    return lifted
